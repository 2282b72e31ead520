"""Gumbel noise as a function: the noise of (picture, position, token id) is computed, never drawn in order.

A token is argmax(logits + noise), which samples the softmax exactly (Gumbel-max). Since the noise depends on nothing but
its key, a picture is the same alone, in any batch, with or without a cache and however many tokens are tried at once.
Integers are mixed by SplitMix64 (Steele, Lea and Flood 2014), whose arithmetic is the same on every device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cm3.core.seeding import derive_seed

_STEP = 0x9E3779B97F4A7C15 - 2**64  # the golden ratio increment of SplitMix64, as a signed 64-bit number
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_LARGEST_BITS = 2.0**53 - 2.0**29  # the largest float32 below 2^53, to which larger numbers would be rounded
_CHUNK_NUMBERS = 1 << 16  # noise is made for so many (row, position, id) at once: enough work per call, still in the cache


def picture_keys(pictures: Sequence[tuple[int, int]], device: torch.device | str = "cpu") -> Tensor:
    """Pairs (seed, picture index) → keys (R,) int64."""
    keys = [derive_seed(seed, "picture", index) for seed, index in pictures]
    return torch.tensor(keys, dtype=torch.int64, device=device)


def gumbel_noise(keys: Tensor, first: int | Tensor, count: int, id_range: tuple[int, int]) -> Tensor:
    """Standard Gumbel noise (R, count, W) float32 of positions [first, first + count) and ids [start, stop), W = stop - start.

    keys: (R,) int64 of `picture_keys`; first: one for all rows, or (R,). A narrower id range gives the same numbers, cut out.
    """
    positions = torch.arange(1, count + 1, device=keys.device)
    positions = positions + (first[:, None] if isinstance(first, Tensor) else first)  # (n,) or (R, n)
    ids = torch.arange(id_range[0] + 1, id_range[1] + 1, device=keys.device)
    places = _mix(keys[:, None] + positions * _STEP)  # (R, n)
    bits = _mix(places[:, :, None] + ids * _STEP)  # (R, n, W)
    uniform = bits.bitwise_right_shift_(11).bitwise_and_(2**53 - 1).float().clamp_(0.5, _LARGEST_BITS).mul_(2.0**-53)  # in (0, 1)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def chunk_length(rows: int, width: int) -> int:
    """How many positions of noise to make at once for `rows` rows and `width` ids."""
    return max(1, _CHUNK_NUMBERS // (rows * width))


def _mix(state: Tensor) -> Tensor:
    """The output function of SplitMix64 on wrapping int64, in place; shifts are made logical by masking."""
    state = state.bitwise_xor_((state >> 30).bitwise_and_(2**34 - 1)).mul_(_FIRST)
    state = state.bitwise_xor_((state >> 27).bitwise_and_(2**37 - 1)).mul_(_SECOND)
    return state.bitwise_xor_((state >> 31).bitwise_and_(2**33 - 1))
