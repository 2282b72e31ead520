"""Exact scores of candidates, and the one order of hits: score falling, among equals the lower row first."""

from __future__ import annotations

import numpy as np

from retrieval.index.protocol import MISSING, Hits

_LOWEST = -1e30  # faiss gives missing rows the lowest float, which no inner product of unit vectors is near
_BLOCK = 2**18  # numbers of candidates held at a time: 2 MiB in double precision


def exact_scores(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products of each query (B, E) with its own `rows` (B, C) of `vectors`, summed in double precision: (B, C) float32.

    They do not depend on what else is searched at the same time, and equal vectors get equal scores. `MISSING` rows get -inf.
    """
    scores = np.empty(rows.shape, np.float32)
    step = max(1, _BLOCK // max(rows.shape[1] * vectors.shape[1], 1))  # queries at a time
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        candidates = vectors[rows[part]].astype(np.float64)  # (b, C, E)
        scores[part] = np.vecdot(candidates, queries[part, None].astype(np.float64))
    scores[rows == MISSING] = -np.inf
    return scores


def exact_hits(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, k: int) -> Hits:
    """The `k` best of the candidates `rows` (B, C) of each query, scored exactly and in order."""
    scores = exact_scores(queries, vectors, rows)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    query = np.arange(len(rows))[:, None]  # faster than take_along_axis, which shows for one query
    return scores[query, order], rows[query, order]


def ordered(scores: np.ndarray, rows: np.ndarray) -> Hits:
    """Hits (B, k) whose scores fall already: among equals the lower row first, and -inf where a row is `MISSING`."""
    for values in scores.tolist():  # lists, not arrays: for one query a few calls of numpy show beside the search
        if len(set(values)) < len(values) or values[-1] < _LOWEST:
            break
    else:  # nearly always there is nothing to do
        return scores, rows
    scores[rows == MISSING] = -np.inf
    query, order = np.arange(len(rows))[:, None], np.lexsort((rows, -scores), axis=1)
    return scores[query, order], rows[query, order]
