"""Exact scores of candidates, and the one order of hits: score falling, among equals the lower row first."""

from __future__ import annotations

import numpy as np

from retrieval.index.protocol import MISSING, Hits


def exact_scores(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products of each query (B, E) with its own `rows` (B, C) of `vectors`, summed in double precision: (B, C) float32.

    They do not depend on what else is searched at the same time, and equal vectors get equal scores. `MISSING` rows get -inf.
    """
    candidates = vectors[rows].astype(np.float64)  # (B, C, E)
    scores: np.ndarray = np.vecdot(candidates, queries[:, None].astype(np.float64)).astype(np.float32)
    scores[rows == MISSING] = -np.inf
    return scores


def exact_hits(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray, k: int) -> Hits:
    """The `k` best of the candidates `rows` (B, C) of each query, scored exactly and in order."""
    scores = exact_scores(queries, vectors, rows)
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    query = np.arange(len(rows))[:, None]  # faster than take_along_axis, which shows for one query
    return scores[query, order], rows[query, order]
