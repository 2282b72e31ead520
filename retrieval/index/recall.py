"""How much of what an exact search finds another search finds. Shape letters: B queries."""

from __future__ import annotations

import numpy as np


def recall_shares(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """For rows (B, k) of an exact search and (B, k) of another: (B,) shares in [0, 1] of the first that the second has too."""
    return np.array([np.isin(want, got).mean() for want, got in zip(expected, found, strict=True)])
