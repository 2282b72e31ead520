"""Two ways to pair the numbers of a head for rotary positions, and the permutation between them.

Meta's code rotates neighbors (0, 1), (2, 3), …; transformers' and ours rotate (i, i + K / 2) (Su et al. 2021 allows any
pairing). Rows of the query and key matrices, and the gains and biases of their norms, move alike; values do not.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor


def pairs_to_halves(rows: Tensor, heads: int) -> Tensor:
    """(H · K, …) with pairs side by side → with the first of all pairs, then the second; same shape."""
    return rearrange(rows, "(h k two) ... -> (h two k) ...", h=heads, two=2)


def halves_to_pairs(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `pairs_to_halves`."""
    return rearrange(rows, "(h two k) ... -> (h k two) ...", h=heads, two=2)
