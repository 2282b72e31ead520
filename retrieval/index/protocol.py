"""What an index is: unit vectors in, the k nearest by inner product out. Shape letters: B queries, N vectors, E width."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

MISSING = -1

Hits = tuple[np.ndarray, np.ndarray]
"""Scores (B, k) float32, falling along a row, and the row numbers (B, k) int64 of the vectors; equal scores: lower row first.
An approximate index that finds fewer than k fills up with row `MISSING` and score -inf."""


class Footprint(NamedTuple):
    """Bytes of memory: what a search keeps there, and the most that building needs."""

    search: int
    build: int


@runtime_checkable
class VectorIndex(Protocol):
    """An index over N vectors; it refers to the array that it was built from."""

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The `k` (at most N) nearest of each of the (B, E) float32 queries; scores are exact, whatever the kind."""

    def tune(self, queries: np.ndarray, target: float) -> None:
        """Look at as little as finds a share `target` of the ten nearest of `queries`; an exact index has nothing to tune."""

    def save(self, folder: Path) -> None:
        """Write the index's own files (none for an exact one) into `folder`."""

    def describe(self) -> dict[str, Any]:
        """Kind and parameters as JSON values, for the bank's description."""


@runtime_checkable
class IndexKind(Protocol):
    """One entry of `INDEXES`."""

    def footprint(self, count: int, width: int) -> Footprint:
        """An estimate for (count, width) vectors. Memory-mapped vectors count where a search reads all of them."""

    def require(self, count: int) -> None:
        """Raise `InputError` for fewer vectors than this kind needs."""

    def build(self, vectors: np.ndarray, seed: int) -> VectorIndex:
        """Index (N, E) float32 rows of length 1; equal input and seed give an equal index.

        Raises `InputError` for fewer vectors than this kind needs."""

    def load(self, folder: Path, vectors: np.ndarray, description: Mapping[str, Any], device: str = "cpu") -> VectorIndex:
        """Read what `save` wrote; `vectors` are the ones it was built from and `description` what it said of itself.

        device: where a kind that can search elsewhere than on the CPU does so, with the same hits.

        Raises `ArtefactError` if they do not fit."""
