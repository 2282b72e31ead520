"""How good an encoder or a memory bank is: picture↔text recall on held-out pairs, self-retrieval, time per query.

An evaluation of an encoder ranks the pairs it is given among themselves, so its numbers depend on how many there are:
chance stands beside every figure.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from cm3.core.artefact import current
from cm3.core.devices import require_device
from cm3.core.errors import InputError
from cm3.core.seeding import numpy_generator
from cm3.documents.document import Document
from cm3.documents.readers import read_documents
from cm3.documents.report import ReadReport
from retrieval.bank import BANK_FILE, MemoryBank, open_bank
from retrieval.encoders import Encoder, load_encoder
from retrieval.index import INDEXES
from retrieval.metrics import recall_metrics
from retrieval.store import content_hash

_TIMED = 50


def evaluate(
    path: Path | str,
    data: Path | str | Iterable[Document],
    limit: int = 256,
    report: ReadReport | None = None,
    verified: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """Evaluate the encoder folder or memory bank at `path` on the first `limit` pairs of `data`.

    verified, device: as in `open_bank`. Returns the figures of `evaluate_encoder`, and for a bank also those of
    `evaluate_bank`. Raises `InputError` for fewer than two pairs, `ArtefactError` for an unusable folder, `UsageError` for a
    device that is not there.
    """
    require_device(device)
    documents = _checked(data, report) if isinstance(data, str | Path) else data
    if not (current(path) / BANK_FILE).is_file():
        return evaluate_encoder(load_encoder(path, device), documents, limit)
    bank = open_bank(path, verified=verified, device=device)
    return {**evaluate_encoder(bank.encoder, documents, limit), **evaluate_bank(bank)}


def _checked(source: Path | str, report: ReadReport | None) -> Iterator[Document]:
    """What is read; `BudgetError` at its end if too much was rejected."""
    report = ReadReport() if report is None else report
    yield from read_documents(source, report=report)
    report.check()


def evaluate_encoder(encoder: Encoder, documents: Iterable[Document], limit: int = 256) -> dict[str, Any]:
    """`recall_metrics` of the first `limit` documents with text and a picture, and "pairs", how many they were."""
    pairs = list(islice((document for document in documents if document.text.strip() and document.images), limit))
    if len(pairs) < 2:
        raise InputError(f"an evaluation needs at least 2 pairs of a picture and a text, got {len(pairs)}")
    images = encoder.encode_images([document.images[0].load() for document in pairs])
    texts = encoder.encode_texts([document.text for document in pairs])
    keys = np.array([content_hash(document) for document in pairs], np.uint64)  # (N, 2): text, pixels
    return {"pairs": len(pairs), **recall_metrics(images, texts, keys[:, 1], keys[:, 0])}


def evaluate_bank(bank: MemoryBank, queries: int = 1000, seed: int = 0) -> dict[str, Any]:
    """What the index gives for vectors of the bank itself.

    "self_retrieval": share of up to `queries` documents that come first for their own vector (documents with an equal vector
    count as the same); "index_recall": its recall against exact search as measured when it was built; "latency_ms": median of
    one query for ten neighbors, documents read; "bytes_per_vector": size of vectors and index on disk per document;
    "search_memory_bytes": the estimate of what a search keeps in memory.
    """
    rows = numpy_generator(seed, "self retrieval").permutation(len(bank))[:queries]
    vectors = np.asarray(bank.vectors[rows])
    scores, _ = bank.nearest(vectors, 1)
    own = np.einsum("ne,ne->n", vectors.astype(np.float64), vectors)
    times = []
    for vector in vectors[:_TIMED]:
        started = time.perf_counter()
        bank.search_vectors(vector[None], 10)
        times.append(1e3 * (time.perf_counter() - started))
    size = sum(file.stat().st_size for file in (bank.folder / "vectors.npy", bank.folder / "index.faiss") if file.is_file())
    return {
        "documents": len(bank),
        "self_retrieval": float((scores[:, 0] >= own - 1e-5).mean()),
        "index_recall": float(bank.info.recall["value"]),
        "latency_ms": float(np.median(times)),
        "bytes_per_vector": size / len(bank),
        "search_memory_bytes": INDEXES.get(str(bank.info.index["kind"])).footprint(len(bank), bank.info.width).search,
    }
