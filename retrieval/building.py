"""Building and changing memory banks: documents in, a verified folder out, published by one rename.

    build    a source of documents → a new bank
    add      a bank and a source → the same bank with more documents, encoded by its own encoder
    remove   a bank and ids → the same bank without them
    merge    banks of one encoder → one bank

Nothing is published when a document cannot be encoded, an id is double, the index finds too little, or the disk is full:
what stood there before still stands. Readers of an older bank keep it until they close it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from cm3.core.artefact import MANIFEST, fingerprint, require_replaceable
from cm3.core.devices import require_device
from cm3.core.errors import InputError, UsageError
from cm3.core.progress import progress
from cm3.documents.document import Document, ImageSegment, Segment
from cm3.documents.readers import open_records, read_documents
from cm3.documents.records import ReadOptions
from cm3.documents.report import ReadReport
from retrieval.bank import ENCODER_FOLDER, KIND, open_bank
from retrieval.bank_writer import BankWriter
from retrieval.clip_retrieval import count_embedded, read_embedded
from retrieval.config import BuildConfig
from retrieval.encoders import load_encoder
from retrieval.encoders.hashing import HashingEncoder
from retrieval.encoders.hub import encoder_folder
from retrieval.indexing import require_possible, require_room
from retrieval.own_encoder import own_encoder, own_place
from retrieval.plan import BankPlan, BuiltBank, derived_plan

_COUNTING_S = 10.0  # encoding takes four times as long with the smallest encoder, hundreds of times with a large one

Source = Path | str | Iterable[Document]


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

    An interrupted build is continued by the next one: the documents, once it encoded for more than half a minute (see
    `retrieval.bank_writer`), and the encoder that it trained or was training (see `retrieval.own_encoder`).

    Raises `InputError` for no documents, a double id or a document that cannot be encoded, `BudgetError` when more than
    `config.budget` of the records were rejected, `UsageError` when no encoder is found, the memory limit is too small or the
    device is not there, `ArtefactError` for an unusable encoder or an index below `config.min_recall`, `RunLockedError` while
    another process builds there, `StorageError` when the disk is full; `out` is then as it was.
    """
    config, out = config or BuildConfig(), Path(out)
    require_device(config.device)
    require_replaceable(out, KIND)
    require_possible(0, 0, config)  # a name that is no index, before an encoder is trained
    with _encoder_folder(source, out, encoder) as folder:
        loaded = HashingEncoder() if folder is None else load_encoder(folder, config.device)
        own = folder is not None and folder.parent == own_place(out)  # which stands nowhere else afterwards
        embedded = folder if config.embed_encoder or own else None
        plan = BankPlan(out, loaded, config, embedded, {"source": _name(source), **_stated_encoder(folder)})
        built = plan.publish(lambda writer: _add_all(writer, source, report))
    shutil.rmtree(own_place(out), ignore_errors=True)
    return built


def add(path: Path | str, source: Source, config: BuildConfig | None = None, report: ReadReport | None = None) -> BuiltBank:
    """Add the documents of `source` to the bank at `path`, encoded by its own encoder; the others keep their rows.

    config: of the new index (`embed_encoder` has no effect: the bank stays as it is). Raises what `build` and `open_bank` raise.
    """
    require_replaceable(path, KIND)
    config = config or BuildConfig()
    bank = open_bank(path, device=config.device)
    everything = np.arange(len(bank))

    def fill(writer: BankWriter) -> None:
        writer.take_over(bank, everything)
        _add_all(writer, source, report, len(bank))

    return derived_plan(bank, Path(path), config).publish(fill)


def remove(path: Path | str, ids: Iterable[str], config: BuildConfig | None = None) -> BuiltBank:
    """Remove the documents called `ids` from the bank at `path`; the others keep their order.

    Raises `InputError` for an id that is not there, or when nothing would be left, and what `open_bank` raises.
    """
    require_replaceable(path, KIND)
    config, named = config or BuildConfig(), set(ids)
    bank = open_bank(path, device=config.device)
    if unknown := named - bank.store.rows.keys():
        raise InputError(f"{path} holds no document {min(unknown)!r} ({len(unknown)} of {len(named)} ids are unknown)")
    rows = np.array([row for row, name in enumerate(bank.ids) if name not in named], np.int64)
    if not len(rows):
        raise InputError(f"{path} would be empty without these {len(named)} documents; delete the folder instead")
    return derived_plan(bank, Path(path), config).publish(lambda writer: writer.take_over(bank, rows))


def merge(paths: Sequence[Path | str], out: Path | str, config: BuildConfig | None = None) -> BuiltBank:
    """One bank `out` of all documents of the banks at `paths`, in that order, which share one encoder.

    Raises `UsageError` for no banks, `ArtefactError` for banks of different encoders, `InputError` for an id that two of them
    have, and what `build` and `open_bank` raise.
    """
    if not paths:
        raise UsageError("there are no banks to merge; give at least one")
    config = config or BuildConfig()
    banks = [open_bank(path, device=config.device) for path in paths]
    require_replaceable(out := Path(out), KIND)
    plan = replace(derived_plan(banks[0], out, config), provenance={"merged": len(banks)}, base=None)

    def fill(writer: BankWriter) -> None:
        for bank in banks:
            writer.take_over(bank, np.arange(len(bank)))

    return plan.publish(fill)


def import_clip_retrieval(
    source: Path | str,
    out: Path | str,
    encoder: Path | str,
    config: BuildConfig | None = None,
    pictures: Path | None = None,
) -> BuiltBank:
    """The bank `out` of embeddings in the layout of clip-retrieval (see `retrieval.clip_retrieval`), which `encoder` made.

    pictures: where the paths of the table start. Raises what `read_embedded` and `build` raise.
    """
    config, out = config or BuildConfig(), Path(out)
    require_device(config.device)
    require_replaceable(out, KIND)
    folder = None if encoder == "hashing" else encoder_folder(encoder)
    loaded = HashingEncoder() if folder is None else load_encoder(folder, config.device)
    embedded = folder if config.embed_encoder else None
    plan = BankPlan(out, loaded, config, embedded, {"source": str(source), **_stated_encoder(folder)})

    def fill(writer: BankWriter) -> None:
        with progress(count_embedded(Path(source)), "memory", unit="document") as bar:
            for documents, vectors in read_embedded(source, loaded, pictures):
                writer.add([_decoded(document) for document in documents], vectors)
                bar.advance(len(documents))

    return plan.publish(fill)


def _add_all(writer: BankWriter, source: Source, report: ReadReport | None, before: int = 0) -> None:
    """Encode and append every document of `source` behind `before` others, with progress."""
    config = writer.config
    documents = islice(_checked(source, report, config.budget), config.max_documents)
    known = _count(source)
    total = min(known, config.max_documents or known) or config.max_documents or 0
    require_possible(before + total if known else 0, writer.encoder.width, config)
    with progress(total, "memory", unit="document") as bar:
        seen = before
        while batch := [_decoded(document) for document in islice(documents, config.batch_size)]:
            seen += len(batch)
            require_room(seen, writer.encoder.width, config)  # nobody may have known how many come
            known = writer.add(batch)
            bar.skip(known)
            bar.advance(len(batch) - known)


def _count(source: Source) -> int:
    """How many records there are, for the time left; 0 when nobody knows, or counting takes longer than it is worth."""
    if not isinstance(source, str | Path):
        return len(source) if isinstance(source, Sized) else 0
    given_up, count = time.monotonic() + _COUNTING_S, 0
    for _ in open_records(source, None, ReadOptions(decode=False)):
        count += 1
        if time.monotonic() > given_up:
            return 0
    return count


def _checked(source: Source, report: ReadReport | None, budget: float) -> Iterator[Document]:
    """The documents; at their end a `BudgetError` if too much was rejected, before anything is published."""
    report = ReadReport() if report is None else report
    yield from read_documents(source, report=report) if isinstance(source, str | Path) else source
    report.check(budget)


def _decoded(document: Document) -> Document:
    """The document with every picture decoded once, for the encoder, the hash and the file alike."""
    return replace(document, segments=tuple(map(_decoded_segment, document.segments)))


def _decoded_segment(segment: Segment) -> Segment:
    if isinstance(segment, ImageSegment) and segment.has_picture:
        return ImageSegment(image=segment.load(), codes=segment.codes)
    return segment


@contextmanager
def _encoder_folder(source: Source, out: Path, encoder: Path | str | None) -> Iterator[Path | None]:
    """The folder of the encoder to use; None for the hashing one."""
    beside = out.absolute().parent / ENCODER_FOLDER
    if encoder is not None:
        yield None if encoder == "hashing" else encoder_folder(encoder)
    elif (beside / "config.json").is_file():
        yield beside
    elif isinstance(source, str | Path):
        with own_encoder(source, out) as folder:
            yield folder
    else:
        raise UsageError(f"no encoder given and none lies at {beside}; give the folder of one, or 'hashing'")


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "documents"


def _stated_encoder(folder: Path | None) -> dict[str, str]:
    """The fingerprint of the encoder's artefact, if it is one: a model folder compares it with its own encoder's."""
    return {"encoder": fingerprint(folder)} if folder is not None and (folder / MANIFEST).is_file() else {}
