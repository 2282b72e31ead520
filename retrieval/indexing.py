"""From documents and vectors to a measured index: choose the kind, build it, tune it, and see how much it finds.

Tuning and measuring ask as people ask: by the text alone and by the pictures alone of documents of the bank, whose vectors are
in no bank (a document's own is the mean of both). Where documents have one part only, mixtures of two documents ask instead.
The documents are those whose ids have the smallest hashes, the same ones however the bank came about; those that measure
are not those that tune.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cm3.core.errors import ArtefactError, UsageError
from cm3.core.seeding import numpy_generator
from cm3.documents.document import Document
from cm3.metrics.intervals import wilson_interval
from retrieval.config import BuildConfig
from retrieval.embedding import embed_parts, unit_rows
from retrieval.encoders import Encoder
from retrieval.index import INDEXES, VectorIndex, choose_index
from retrieval.index.flat import FlatIndex
from retrieval.index.recall import recall_shares
from retrieval.store import DocumentStore, pictures_of

NUM_TUNING, NUM_MEASURING = 256, 500  # queries
RECALL_AT = 10

Recall = dict[str, float | int]
"""How much of the exact nearest is found: "value", its 95 % interval "low" to "high", "queries" and "at"."""


def index_vectors(folder: Path, vectors: np.ndarray, encoder: Encoder, config: BuildConfig) -> tuple[VectorIndex, Recall]:
    """Index `vectors` (N, E), those of the documents in `folder`, and measure the index.

    Raises `UsageError` when it would need more memory than allowed, `InputError` for too few vectors, `ArtefactError` when
    it finds less than `config.min_recall`.
    """
    index: VectorIndex = INDEXES.get(_kind(len(vectors), vectors.shape[1], config)).build(vectors, config.seed)
    if isinstance(index, FlatIndex):
        return index, {"value": 1.0, "low": 1.0, "high": 1.0, "queries": 0, "at": RECALL_AT}
    queries = held_out_queries(DocumentStore(folder), vectors, encoder, NUM_TUNING + NUM_MEASURING)
    index.tune(queries[NUM_MEASURING:], max(config.target_recall, min(1.0, config.min_recall + 0.01)))
    recall = measure_recall(index, vectors, queries[:NUM_MEASURING])
    if recall["value"] < config.min_recall:
        raise ArtefactError(
            f"the {index.describe()['kind']} index finds {recall['value']:.1%} of what an exact search finds, below the floor of "
            f"{config.min_recall:.1%}, and was not published; take another index, or lower min_recall"
        )
    return index, recall


def measure_recall(index: VectorIndex, vectors: np.ndarray, queries: np.ndarray) -> Recall:
    """Share of the exact 10 nearest of `queries` (B, E) that `index` finds (`recall_shares`); interval: Wilson, over queries."""
    k = min(RECALL_AT, len(vectors))
    shares = recall_shares(FlatIndex(vectors).search(queries, k), index.search(queries, k))
    value, whole = float(shares.mean()), round(float(shares.sum()))
    low, high = wilson_interval(whole, len(shares))
    return {"value": value, "low": min(low, value), "high": max(high, value), "queries": len(shares), "at": k}


def held_out_queries(store: DocumentStore, vectors: np.ndarray, encoder: Encoder, count: int) -> np.ndarray:
    """(count, E) float32 rows of length 1 that are in no bank; see the module text."""
    rows = heapq.nsmallest(count, range(len(store)), key=lambda row: (_hash(store.ids[row]), row))
    documents = [document for row in rows if _has_both(document := store[row])][: -(-count // 2)]
    texts, pictures = [document.text for document in documents], [pictures_of(document) for document in documents]
    none: Sequence[str] = [""] * len(documents)
    names = [document.id for document in documents]
    asked = [embed_parts(texts, [[]] * len(documents), encoder, names), embed_parts(none, pictures, encoder, names)]
    apart = np.stack(asked, axis=1).reshape(-1, vectors.shape[1])[:count]  # (2 · documents, E)
    first, second = numpy_generator(0, "mixed queries").integers(len(vectors), size=(2, count - len(apart)))
    mixed = unit_rows(vectors[first] + 0.5 * vectors[second])
    return np.concatenate([apart, mixed]).astype(np.float32)


def require_possible(count: int, width: int, config: BuildConfig) -> None:
    """Raise what choosing the index for (count, width) vectors raises, before they are made; a count of 0 is unknown."""
    if config.index != "auto":
        INDEXES.get(config.index)
    if count:
        INDEXES.get(_kind(count, width, config)).require(count)


def require_room(count: int, width: int, config: BuildConfig) -> None:
    """Raise `UsageError` when an index over (count, width) vectors takes more memory than allowed; with more it takes no less."""
    _kind(count, width, config)


def _kind(count: int, width: int, config: BuildConfig) -> str:
    limit = None if config.memory_limit_gib is None else int(config.memory_limit_gib * 2**30)
    if config.index == "auto":
        return choose_index(count, width, limit)
    needed = INDEXES.get(config.index).footprint(count, width).build
    if limit is not None and needed > limit:
        raise UsageError(
            f"an index of kind {config.index!r} over {count:,} vectors of width {width} needs about "
            f"{needed / 2**30:.3g} GiB of memory, the limit is {limit / 2**30:.3g} GiB; raise it, or take 'auto' or another index"
        )
    return config.index


def _hash(id: str) -> bytes:
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _has_both(document: Document) -> bool:
    return bool(document.text.strip()) and any(segment.has_picture for segment in document.images)
