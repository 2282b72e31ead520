"""Building a memory bank: documents in, a verified folder out.

    read (accounted) → encode in batches → vectors → index → recall against exact search → publish by one rename

Nothing is published when a document cannot be encoded, an id is double, the index finds too little, or the disk is full.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cm3.core.artefact import MANIFEST, fingerprint, write_json, writing
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.core.progress import progress
from cm3.core.seeding import numpy_generator
from cm3.core.storage import sibling
from cm3.documents.document import Document, ImageSegment, Segment
from cm3.documents.readers import read_documents
from cm3.documents.report import ReadReport
from retrieval.bank import KIND, BankInfo
from retrieval.config import BuildConfig
from retrieval.embedding import embed_documents
from retrieval.encoders import ENCODERS, Encoder, load_encoder
from retrieval.encoders.fingerprint import decisive_files
from retrieval.encoders.hashing import HashingEncoder
from retrieval.index import INDEXES, VectorIndex, choose_index
from retrieval.index.flat import FlatIndex
from retrieval.store import DocumentWriter

_RECALL_QUERIES = 500
_RECALL_AT = 10
_LEAST_PAIRS = 64  # fewer teach an encoder nothing

_logger = logging.getLogger(__name__)

Source = Path | str | Iterable[Document]


@dataclass(frozen=True)
class BuiltBank:
    """What `build` made: folder, number of documents, kind of index and its measured recall, fingerprint of the encoder."""

    path: Path
    count: int
    index: str
    recall: float
    encoder: str


def build(
    source: Source,
    out: Path | str,
    encoder: Path | str | None = None,
    config: BuildConfig | None = None,
    report: ReadReport | None = None,
) -> BuiltBank:
    """Build the memory bank `out` of the documents of `source` (a source for `read_documents`, or documents).

    encoder: an encoder folder (see `train_encoder`), or "hashing" for the one without weights. By default the folder `encoder`
        beside `out`; if there is none, a small one is trained on the pairs of `source` (hashed features below 64 pairs).
    report: gets the account of what was read (see `read_documents`).

    Raises `InputError` for no documents, a double id or a document that cannot be encoded, `BudgetError` when more than 1 % of
    the records were rejected, `UsageError` when no encoder is found, `ArtefactError` for an unusable one or an index below
    `config.min_recall`, `StorageError` when the disk is full; `out` is then as it was.
    """
    config, out = config or BuildConfig(), Path(out)
    scratch = sibling(out, prefix=".", suffix=".encoder")
    folder = _encoder_folder(source, out, encoder, scratch)
    loaded = HashingEncoder() if folder is None else load_encoder(folder)
    with writing(out, KIND, _provenance(source, folder)) as temporary:
        info = _fill(temporary, source, loaded, config, report)
        if config.embed_encoder or folder in (None, scratch):  # those stand nowhere else
            _embed_encoder(loaded, folder, temporary / "encoder")
        write_json(temporary / "bank.json", info.model_dump(mode="json"))
    shutil.rmtree(scratch, ignore_errors=True)
    return BuiltBank(out, info.count, str(info.index["kind"]), float(info.recall["value"]), info.encoder)


def _fill(folder: Path, source: Source, encoder: Encoder, config: BuildConfig, report: ReadReport | None) -> BankInfo:
    """Write documents, vectors and index into `folder`."""
    blocks, documents, total = [], _documents(source, config, report), _count(source, config)
    with closing(DocumentWriter(folder, config.max_image_side)) as writer, progress(total, "memory", unit="document") as bar:
        while batch := [_decoded(document) for document in islice(documents, config.batch_size)]:
            blocks.append(embed_documents(batch, encoder))
            for document in batch:
                writer.add(document)
            bar.advance(len(batch))
        if not blocks:
            raise InputError("there are no documents to remember; give a source with at least one")
        writer.finish()
    vectors = np.concatenate(blocks)  # (N, E)
    np.save(folder / "vectors.npy", vectors)
    kind = choose_index(len(vectors)) if config.index == "auto" else config.index
    index: VectorIndex = INDEXES.get(kind).build(vectors, config.seed)
    index.save(folder)
    recall = measure_recall(index, vectors, config.seed)
    if recall["value"] < config.min_recall:
        raise ArtefactError(
            f"the {kind} index finds {recall['value']:.1%} of what an exact search finds, below the floor of "
            f"{config.min_recall:.1%}, and was not published; take another index, or lower min_recall"
        )
    return BankInfo(
        count=len(vectors), width=vectors.shape[1], encoder=encoder.fingerprint, encoder_kind=_kind(encoder),
        index=index.describe(), recall=recall,
    )  # fmt: skip


def measure_recall(index: VectorIndex, vectors: np.ndarray, seed: int) -> dict[str, float | int]:
    """Share of the exact 10 nearest that `index` finds, over up to 500 queries that are in no bank: midpoints of two documents.

    "value", the 95 % interval "low" to "high" (normal, over queries), "queries" and "at". An exact index is not measured.
    """
    if isinstance(index, FlatIndex):
        return {"value": 1.0, "low": 1.0, "high": 1.0, "queries": 0, "at": _RECALL_AT}
    rng, k = numpy_generator(seed, "recall"), min(_RECALL_AT, len(vectors))
    first, second = rng.integers(len(vectors), size=(2, _RECALL_QUERIES))
    queries = vectors[first] + 0.5 * vectors[second]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    _, expected = FlatIndex(vectors).search(queries, k)
    _, found = index.search(queries, k)
    shares = np.array([np.isin(want, got).mean() for want, got in zip(expected, found, strict=True)])
    margin = 1.96 * float(shares.std(ddof=1)) / len(shares) ** 0.5
    value = float(shares.mean())
    return {"value": value, "low": value - margin, "high": min(1.0, value + margin), "queries": len(shares), "at": k}


def _documents(source: Source, config: BuildConfig, report: ReadReport | None) -> Iterator[Document]:
    documents = _checked(source, report) if isinstance(source, str | Path) else iter(source)
    return islice(documents, config.max_documents)


def _checked(source: Path | str, report: ReadReport | None) -> Iterator[Document]:
    """What is read; at its end a `BudgetError` if too much was rejected, before anything is published."""
    report = ReadReport() if report is None else report
    yield from read_documents(source, report=report)
    report.check()


def _count(source: Source, config: BuildConfig) -> int:
    """How many documents are to come, as far as it is known without reading; 0 if it is not."""
    known = len(source) if isinstance(source, Sized) and not isinstance(source, str) else 0
    return min(known, config.max_documents or known) or config.max_documents or 0


def _decoded(document: Document) -> Document:
    """The document with every picture decoded once, for the encoder, the hash and the file alike."""
    return replace(document, segments=tuple(map(_decoded_segment, document.segments)))


def _decoded_segment(segment: Segment) -> Segment:
    if isinstance(segment, ImageSegment) and (segment.image or segment.encoded or segment.path):
        return ImageSegment(image=segment.load())
    return segment


def _encoder_folder(source: Source, out: Path, encoder: Path | str | None, scratch: Path) -> Path | None:
    """The folder of the encoder to use; None for the hashing one."""
    if encoder is not None:
        return None if encoder == "hashing" else Path(encoder)
    beside = out.absolute().parent / "encoder"
    if (beside / "config.json").is_file():
        return beside
    if not isinstance(source, str | Path):
        raise UsageError(f"no encoder given and none lies at {beside}; give the folder of one, or 'hashing'")
    return _new_encoder(source, out, scratch)


def _new_encoder(source: Path | str, out: Path, scratch: Path) -> Path | None:
    """An encoder trained on the pairs of `source`, or None when there are too few of them."""
    from retrieval.training import train_encoder

    pairs = sum(1 for document in read_documents(source, report=ReadReport()) if document.text.strip() and document.images)
    if pairs < _LEAST_PAIRS:
        _logger.warning("%s: %d pairs of picture and text are too few to train an encoder; hashed features are used", out, pairs)
        return None
    _logger.warning("%s: no encoder given; training a small one on its %d pairs (pass an encoder to avoid this)", out, pairs)
    return train_encoder(source, scratch, report=ReadReport()).path


def _embed_encoder(encoder: Encoder, source: Path | None, target: Path) -> None:
    """Copy what decides the vectors into the bank."""
    target.mkdir()
    if isinstance(encoder, HashingEncoder):
        encoder.save(target)
    elif source is not None:
        for file in [*decisive_files(source), *source.glob("tokenizer_config.json")]:
            shutil.copyfile(file, target / file.name)


def _provenance(source: Source, encoder: Path | None) -> dict[str, Any]:
    """Where the documents came from, and the fingerprint of the encoder's artefact if it is one."""
    stated = {"encoder": fingerprint(encoder)} if encoder is not None and (encoder / MANIFEST).is_file() else {}
    return {"source": str(source) if isinstance(source, str | Path) else "documents", **stated}


def _kind(encoder: Encoder) -> str:
    return next((name for name in ENCODERS.names() if isinstance(encoder, ENCODERS.get(name))), type(encoder).__name__)
