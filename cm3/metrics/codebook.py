"""How much of a codebook is in use, from the codes of many pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from cm3.core.errors import UsageError


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs in `codes` (any shape, int in [0, codebook_size)). (codebook_size,) int64

    Raises `UsageError` for a code outside that range.
    """
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
        raise UsageError(f"codes span [{int(codes.min())}, {int(codes.max())}], expected [0, {codebook_size})")
    return torch.bincount(codes.flatten().long(), minlength=codebook_size)


def codebook_usage(counts: Tensor) -> float:
    """The share of the codebook that occurs at least once, in [0, 1]."""
    return float((counts > 0).double().mean())


def codebook_perplexity(counts: Tensor) -> float:
    """exp of the entropy of the code frequencies: the number of codes that equally likely ones would be, in [1, codebook_size].

    0 when nothing was counted.
    """
    total = counts.sum()
    if total == 0:
        return 0.0
    rates = counts[counts > 0].double() / total
    return float(torch.exp(-(rates * rates.log()).sum()))
