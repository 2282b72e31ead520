"""The retriever of training: for every document of a data set, the neighbors that will stand before it.

    document → query (text, picture, or both; 20 % of it dropped) → nearest of the bank → filters → neighbors

The filters are those of CM3Leon (arXiv:2309.02591 section 2.1): relevance ranks; documents with both modalities go first; and
what is too similar to a query of the document or to a neighbor already taken is passed over. The document itself and exact
duplicates of it (same id, same picture, or, without pictures, same text) are never its neighbors. Shape letters: N documents,
K neighbors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from cm3.core.errors import UsageError
from cm3.core.seeding import numpy_generator
from cm3.documents.document import Document, Neighbor
from retrieval.bank import MemoryBank
from retrieval.config import RetrieverConfig
from retrieval.embedding import embed_parts
from retrieval.index.protocol import MISSING
from retrieval.query_dropout import drop_cells, drop_words
from retrieval.store import content_hash, pictures_of

NO_NEIGHBOR = MISSING
_BATCH = 128
_ROUNDING = 1e-6  # of a product in float32, beside scores summed in double precision


@dataclass(frozen=True)
class _Query:
    """One vector's worth of asking. `row` is the position of the document in its batch; a part may be absent, not both."""

    row: int
    text: str
    images: tuple[Image.Image, ...]


class NeighborFinder:
    """Finds neighbors of documents in `bank` as `config` says; deterministic by `config.seed`."""

    def __init__(self, bank: MemoryBank, config: RetrieverConfig | None = None) -> None:
        self.bank, self.config = bank, config or RetrieverConfig()
        self._whole = (bank.store.content != 0).all(axis=1) if self.config.prefer_whole else None  # (N,): text and pictures

    def neighbors(self, documents: Iterable[Document], k: int) -> Iterator[list[Neighbor]]:
        """For each document its up to `k` neighbors, best first. Raises `UsageError` for k below 1."""
        for rows, scores in self._search(documents, k):
            yield self.bank.read(np.array(scores), np.array(rows))

    def table(self, documents: Iterable[Document], k: int) -> np.ndarray:
        """Row numbers in the bank of the neighbors of N documents: (N, k) int64, best first, `NO_NEIGHBOR` for missing ones."""
        rows = [found + [NO_NEIGHBOR] * (k - len(found)) for found, _ in self._search(documents, k)]
        return np.array(rows, np.int64).reshape(-1, k)  # (N, k)

    def _search(self, documents: Iterable[Document], k: int) -> Iterator[tuple[list[int], list[float]]]:
        if k < 1:
            raise UsageError(f"k is {k}, expected at least 1")
        stream = iter(documents)
        while batch := list(islice(stream, _BATCH)):
            queries = [query for row, document in enumerate(batch) for query in self._queries(row, document)]
            asked = self._vectors(queries, batch)
            scores, rows = self.bank.nearest(asked, max(self.config.candidates, k))
            own: list[list[int]] = [[] for _ in batch]  # the queries of every document
            for place, query in enumerate(queries):
                own[query.row].append(place)
            for document, places in zip(batch, own, strict=True):
                yield self._choose(document, asked[places], rows[places], scores[places], k)

    def _vectors(self, queries: Sequence[_Query], batch: Sequence[Document]) -> np.ndarray:
        texts, images = [query.text for query in queries], [query.images for query in queries]
        return embed_parts(texts, images, self.bank.encoder, [batch[query.row].id for query in queries])

    def _queries(self, row: int, document: Document) -> list[_Query]:
        """What `document` asks: one query, or two when text and picture ask apart."""
        rng, rate = numpy_generator(self.config.seed, "query", document.id), self.config.query_dropout
        text = drop_words(document.text, rate, rng)
        images = tuple(drop_cells(picture, rate, rng) for picture in pictures_of(document))
        parts = {"text": _Query(row, text, ()), "image": _Query(row, "", images), "both": _Query(row, text, images)}
        kind = self.config.query
        if kind == "either":
            kind = "text" if rng.random() < 0.5 else "image"
        if not images or not text.strip():
            kind = "both"  # which is then the one part there is
        return [parts["text"], parts["image"]] if kind == "each" else [parts[kind]]

    def _choose(
        self, document: Document, asked: np.ndarray, rows: np.ndarray, scores: np.ndarray, k: int
    ) -> tuple[list[int], list[float]]:
        """Up to `k` neighbors of a document that asked Q queries (Q, E), from the candidates (Q, C) of each, most similar first.

        The queries choose in turns, each the best of its candidates that is not too similar to any query or to one taken.
        """
        most, taken, similar = self.config.max_similarity, list[int](), list[float]()
        vectors = np.empty((0, asked.shape[1]), np.float32)  # of the taken
        choices = deque(self._candidates(document, asked, *own) for own in zip(rows, scores, strict=True))
        while choices and len(taken) < k:
            candidates = choices.popleft()
            for row, score in candidates:
                vector = np.asarray(self.bank.vectors[row])
                if row not in taken and (not taken or float((vectors @ vector).max()) <= most):
                    taken.append(row)
                    similar.append(score)
                    vectors = np.concatenate([vectors, vector[None]])
                    choices.append(candidates)
                    break
        return taken, similar

    def _candidates(
        self, document: Document, asked: np.ndarray, rows: np.ndarray, scores: np.ndarray
    ) -> Iterator[tuple[int, float]]:
        """The candidates (C,) of one query that may stand beside the document; those with both modalities first, if wished."""
        allowed = (rows >= 0) & (scores <= self.config.max_similarity) & ~self._same(document, rows)
        rows, scores = rows[allowed], scores[allowed]
        allowed = (np.asarray(self.bank.vectors[rows]) @ asked.T <= self.config.max_similarity + _ROUNDING).all(axis=1)
        rows, scores = rows[allowed], scores[allowed]
        if self._whole is not None:
            order = np.argsort(~self._whole[rows], kind="stable")
            rows, scores = rows[order], scores[order]
        return iter(list(zip(rows.tolist(), scores.tolist(), strict=True)))

    def _same(self, document: Document, rows: np.ndarray) -> np.ndarray:
        """Which of `rows` are the document itself or an exact duplicate."""
        text, pixels = content_hash(document)
        content = self.bank.store.content[rows]  # (C, 2): text, pixels
        duplicate = content[:, 1] == pixels if pixels else (content[:, 0] == text) & (content[:, 1] == 0)
        own = self.bank.store.rows.get(document.id, NO_NEIGHBOR)
        same: np.ndarray = duplicate | (rows == own)
        return same
