"""Exact search: one matrix product per block of vectors, then a top-k. Right by construction, and the default.

A batch of queries shares one pass over the vectors, and torch's matrix product is several times faster than the one in
faiss wheels. The candidates are scored again in double precision (`exact_hits`), so neither blocks nor batches change a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.index.protocol import Footprint, Hits
from retrieval.index.scoring import exact_hits

_BLOCK_SCORES = 2**24  # scores held at a time: 64 MiB
_USUAL_BATCH = 64  # queries at a time, for the estimate
_MARGIN = 8  # candidates beyond k that are scored again
_ROUNDING = 1e-5  # more than a float32 product of unit vectors can be wrong


class FlatIndex:
    """Fulfils `VectorIndex`, and as a class `IndexKind`, over an array (N, E) float32, which may be memory-mapped."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    @classmethod
    def footprint(cls, count: int, width: int) -> Footprint:
        """Every search reads all vectors: it is fast as long as they stay in memory."""
        search = 4 * count * width + 4 * min(_BLOCK_SCORES, _USUAL_BATCH * count)
        return Footprint(search, search)

    @classmethod
    def build(cls, vectors: np.ndarray, seed: int) -> FlatIndex:
        """Refer to `vectors`; nothing is drawn, `seed` is taken for uniformity."""
        return cls(vectors)

    @classmethod
    def load(cls, folder: Path, vectors: np.ndarray, description: Mapping[str, Any]) -> FlatIndex:
        """Refer to `vectors`; `folder` holds nothing of a flat index."""
        return cls(vectors)

    def tune(self, queries: np.ndarray, target: float) -> None:
        """Nothing to tune."""

    def save(self, folder: Path) -> None:
        """Nothing to write."""

    def describe(self) -> dict[str, Any]:
        """An exact index has no parameters."""
        return {"kind": "flat", "exact": True}

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The exact `k` nearest of each query; `k` may be at most N."""
        wanted = min(k + _MARGIN, len(self.vectors))
        approximate, rows = self._candidates(torch.from_numpy(np.ascontiguousarray(queries)), wanted)
        scores, rows = exact_hits(queries, self.vectors, rows, k)
        if wanted < len(self.vectors):
            crowded = approximate[:, -1] >= approximate[:, k - 1] - _ROUNDING  # more near-equals than candidates
            for place in np.flatnonzero(crowded):
                query, threshold = queries[place : place + 1], approximate[place, k - 1] - _ROUNDING
                equals = np.flatnonzero(self.vectors @ query[0] >= threshold)[None]  # (1, candidates)
                [scores[place]], [rows[place]] = exact_hits(query, self.vectors, equals, k)
        return scores, rows

    def _candidates(self, queries: torch.Tensor, wanted: int) -> Hits:
        """The `wanted` best of each query by float32 products, block by block of vectors; best first, order among equals open."""
        block = max(_BLOCK_SCORES // max(len(queries), 1), wanted)
        best = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self.vectors), block):
            scores = queries @ torch.from_numpy(self.vectors[start : start + block]).T  # (B, block)
            found = scores.topk(min(wanted, scores.shape[1]), dim=1)
            pool = torch.cat([best[0], found.values], 1), torch.cat([best[1], found.indices + start], 1)
            top = pool[0].topk(min(wanted, pool[0].shape[1]), dim=1)
            best = top.values, pool[1].gather(1, top.indices)
        return best[0].numpy(), best[1].numpy()
