"""Exact search: one matrix product per block of vectors, then a top-k. Right by construction, and the default.

A batch of queries shares one pass over the vectors, and torch's matrix product is several times faster than the one in
faiss wheels. The candidates are scored again in double precision (`exact_hits`), so neither blocks nor batches nor the device
that finds them change a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cm3.core.errors import UsageError
from retrieval.index.protocol import Footprint, Hits
from retrieval.index.scoring import exact_hits

_BLOCK_SCORES = 2**24  # scores held at a time: 64 MiB
_USUAL_BATCH = 64  # queries at a time, for the estimate
_RUN = 64  # columns whose maximum is taken together by a top-k
_FEW = 2**18  # scores of one query; up to here a partition is cheaper: with caches emptied by the vectors, every call counts
_MARGIN = 8  # candidates beyond k that are scored again
_ROUNDING = 1e-5  # more than a float32 product of unit vectors can be wrong


class FlatIndex:
    """Fulfils `VectorIndex`, and as a class `IndexKind`, over an array (N, E) float32, which may be memory-mapped.

    device: where candidates are found. Another one than the CPU holds a copy of the vectors, made by the first search; its
    products must be of full float32 precision, as torch's are unless it is told otherwise (TF32).
    """

    def __init__(self, vectors: np.ndarray, device: str = "cpu") -> None:
        self.vectors, self.device = vectors, device

    @classmethod
    def footprint(cls, count: int, width: int) -> Footprint:
        """Every search reads all vectors: it is fast as long as they stay in memory."""
        search = 4 * count * width + 4 * min(_BLOCK_SCORES, _USUAL_BATCH * count)
        return Footprint(search, search)

    @classmethod
    def require(cls, count: int) -> None:
        """Any number will do."""

    @classmethod
    def build(cls, vectors: np.ndarray, seed: int) -> FlatIndex:
        """Refer to `vectors`; nothing is drawn, `seed` is taken for uniformity."""
        return cls(vectors)

    @classmethod
    def load(cls, folder: Path, vectors: np.ndarray, description: Mapping[str, Any], device: str = "cpu") -> FlatIndex:
        """Refer to `vectors`; `folder` holds nothing of a flat index."""
        return cls(vectors, device)

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
        rows = self._candidates(torch.from_numpy(np.ascontiguousarray(queries)).to(self.device), wanted).cpu().numpy()
        scores, rows = exact_hits(queries, self.vectors, rows, wanted)
        kth = scores[:, k - 1] - _ROUNDING
        if wanted < len(self.vectors) and (crowded := scores[:, -1] >= kth).any():  # more near-equals than candidates
            for place in np.flatnonzero(crowded):
                query = queries[place : place + 1]
                equals = np.flatnonzero(self.vectors @ query[0] >= kth[place])[None]  # (1, candidates)
                [scores[place, :k]], [rows[place, :k]] = exact_hits(query, self.vectors, equals, k)
        return scores[:, :k], rows[:, :k]

    @cached_property
    def _searched(self) -> torch.Tensor:
        """The vectors (N, E) on the device; on the CPU the array itself."""
        try:
            return torch.from_numpy(self.vectors).to(self.device)
        except torch.OutOfMemoryError:
            needed = self.vectors.nbytes / 2**30
            raise UsageError(f"{self.device} has no room for {needed:.3g} GiB of vectors; search on the CPU") from None

    def _candidates(self, queries: torch.Tensor, wanted: int) -> torch.Tensor:
        """Rows (B, wanted) of the best of each query by float32 products, block by block of vectors; their order is open."""
        block = max(_BLOCK_SCORES // max(len(queries), 1), wanted)
        if block >= len(self.vectors):
            return largest(_products(queries, self._searched), wanted)
        scores, rows = [], []
        for start in range(0, len(self.vectors), block):
            found = _products(queries, self._searched[start : start + block])  # (B, block)
            columns = largest(found, min(wanted, found.shape[1]))
            scores.append(found.gather(1, columns))
            rows.append(columns + start)
        return torch.cat(rows, 1).gather(1, largest(torch.cat(scores, 1), wanted))


def _products(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Inner products (B, N). One query waits for memory alone, and numpy's product of a matrix and a vector reads it faster."""
    if len(queries) == 1 and queries.device.type == "cpu":
        return torch.from_numpy(queries.numpy() @ vectors.numpy().T)
    return queries @ vectors.T


def largest(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The columns (B, k) of the `k` largest of each row of (B, N) scores; their order is open.

    They stand in the k runs of `_RUN` columns with the largest maxima, and those maxima are found in one cheap pass.
    """
    batch, count = scores.shape
    if batch == 1 and k < count <= _FEW and scores.device.type == "cpu":
        return torch.from_numpy(np.argpartition(scores.numpy(), count - k)[:, count - k :])
    whole = count // _RUN * _RUN
    if whole < 2 * k * _RUN:
        return scores.topk(k, dim=1).indices
    maxima = scores[:, :whole].view(batch, -1, _RUN).amax(2)
    runs = maxima.topk(k, dim=1).indices  # (B, k)
    inside = (_RUN * runs[:, :, None] + torch.arange(_RUN, device=scores.device)).flatten(1)
    columns = torch.cat([inside, torch.arange(whole, count, device=scores.device).expand(batch, -1)], 1)
    return columns.gather(1, scores.gather(1, columns).topk(k, dim=1).indices)
