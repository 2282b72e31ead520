"""What an index is: unit vectors in, the k nearest by inner product out. Shape letters: B queries, N vectors, E width."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

Hits = tuple[np.ndarray, np.ndarray]
"""Scores (B, k) float32, falling along a row, and the row numbers (B, k) int64 of the vectors; equal scores: lower row first.
An approximate index that finds fewer than k fills up with row -1 and score -inf."""


@runtime_checkable
class VectorIndex(Protocol):
    """An index over N vectors; it may keep them, or refer to the array that it was built from."""

    @classmethod
    def build(cls, vectors: np.ndarray, seed: int) -> VectorIndex:
        """Index (N, E) float32 rows of length 1; equal input and seed give an equal index.

        Raises `InputError` for fewer vectors than this kind needs."""

    @classmethod
    def load(cls, folder: Path, vectors: np.ndarray) -> VectorIndex:
        """Read what `save` wrote; `vectors` are the ones it was built from. Raises `ArtefactError` if they do not fit."""

    def save(self, folder: Path) -> None:
        """Write the index's own files (none for an exact one) into `folder`."""

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The `k` (at most N) nearest of each of the (B, E) float32 queries."""

    def describe(self) -> dict[str, Any]:
        """The parameters as JSON values, for the bank's description."""
