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
_RUN = 64  # columns whose maximum is taken together by a top-k
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
        values, rows = [], []
        for start in range(0, len(self.vectors), block):
            scores = queries @ torch.from_numpy(self.vectors[start : start + block]).T  # (B, block)
            best, columns = largest(scores, min(wanted, scores.shape[1]))
            values.append(best)
            rows.append(columns + start)
        if len(values) == 1:
            return values[0].numpy(), rows[0].numpy()
        best, places = torch.cat(values, 1).topk(wanted, dim=1)
        return best.numpy(), torch.cat(rows, 1).gather(1, places).numpy()


def largest(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` largest of each row of (B, N) scores and their columns (B, k), largest first, order among equals open.

    The k largest stand in the k runs of `_RUN` columns with the largest maxima, and those maxima are found in one cheap pass.
    """
    batch, count = scores.shape
    whole = count // _RUN * _RUN
    if whole < 2 * k * _RUN:
        values, columns = scores.topk(k, dim=1)
        return values, columns
    maxima = scores[:, :whole].view(batch, -1, _RUN).amax(2)
    runs = maxima.topk(k, dim=1).indices  # (B, k)
    inside = (_RUN * runs[:, :, None] + torch.arange(_RUN)).flatten(1)
    columns = torch.cat([inside, torch.arange(whole, count).expand(batch, -1)], 1)
    values, places = scores.gather(1, columns).topk(k, dim=1)
    return values, columns.gather(1, places)
