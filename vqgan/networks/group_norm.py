"""Group normalization (arXiv:1803.08494) that is exact on every picture, in the layout that convolutions of a CPU are fast in.

torch's own kernel for channels-last tensors on a CPU adds up each channel one number after the other. Over a flat picture of 256²
the sums are off by some 10^-3, and what is left after subtracting them is wrong by more than the pixels' differences. Here small
maps go through the other layout, whose kernel adds in a tree; large ones are summed in blocks around a value of their own, and
normalized in blocks that stay in a cache, with the activation that follows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BLOCK = 2**17  # numbers per thread that stay in its cache: 512 KiB
_SMALL = 8  # offsets up to this are rounded by less than 10^-6


class GroupNorm(nn.GroupNorm):
    """As `torch.nn.GroupNorm` with a gain and a bias: (B, C, Y, X) → (B, C, Y, X) in the same layout, to float32's rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if not _loses_sums(x):
            return super().forward(x)
        if _suits_blocks(x):
            return self._in_blocks(x, torch.empty_like(x), activate=False)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)

    def silu(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """silu(norm(x)). `overwrite`: x is needed no more, so that without gradients the result may take its place."""
        if _loses_sums(x) and _suits_blocks(x):
            return self._in_blocks(x, x if overwrite else torch.empty_like(x), activate=True)
        return F.silu(self(x), inplace=True)

    def _in_blocks(self, x: Tensor, out: Tensor, activate: bool) -> Tensor:
        for rows, results in zip(_rows(x), _rows(out)):  # (Y · X, C) of one picture
            mean, gain = self._statistics(rows)
            offset = self.bias - mean * gain
            folded = bool((mean * gain).abs().max() < _SMALL)  # one pass less, where its rounding does not show
            for part, result in zip(_blocks(rows), _blocks(results)):
                if folded:
                    torch.addcmul(offset, part, gain, out=result)
                else:
                    torch.addcmul(self.bias, torch.sub(part, mean, out=result), gain, out=result)
                if activate:
                    F.silu(result, inplace=True)
        return out

    def _statistics(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """For each channel the mean of its group and what a deviation is multiplied by, (C,) each, of one picture (P, C).

        Moments of blocks and their sum as in Chan, Golub, LeVeque 1979, the blocks in float32, the rest in double precision.
        """
        blocks = _blocks(rows)
        centers = torch.stack([part[len(part) // 3] for part in blocks])  # a flat stretch deviates from it by nothing
        sums, squares = torch.empty_like(centers), torch.empty_like(centers)  # (blocks, C)
        buffer = torch.empty_like(blocks[0])
        for index, part in enumerate(blocks):
            deviations = torch.sub(part, centers[index], out=buffer[: len(part)])
            torch.sum(deviations, 0, out=sums[index])
            torch.sum(deviations.square_(), 0, out=squares[index])
        sizes = torch.tensor([[len(part)] for part in blocks], dtype=torch.float64)
        offsets = sums / sizes
        means, variance = _joined(centers + offsets, squares / sizes - offsets.square(), sizes)  # (C,) of each channel
        equal = sizes.new_ones(rows.shape[1] // self.num_groups, 1)  # channels of a group
        mean, variance = _joined(means.view(self.num_groups, -1).T, variance.view(self.num_groups, -1).T, equal)
        gain = self.weight * (variance + self.eps).rsqrt().repeat_interleave(len(equal))
        return mean.repeat_interleave(len(equal)).to(rows.dtype), gain.to(rows.dtype)


def _joined(means: Tensor, variances: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (n, C) of n samples of `sizes` (n, 1) → those of all of them together, (C,) each."""
    shares = sizes / sizes.sum()
    mean = (shares * means).sum(0)
    return mean, (shares * (variances.clamp_min(0) + (means - mean).square())).sum(0)


def _loses_sums(x: Tensor) -> bool:
    """Whether torch's kernel for `x` is the one that adds naively."""
    return x.device.type == "cpu" and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _suits_blocks(x: Tensor) -> bool:
    """Whether blocks pay: the maps are large, and nobody asks for gradients."""
    return not torch.is_grad_enabled() and x.dtype == torch.float32 and x[0].numel() > _BLOCK


def _rows(x: Tensor) -> Tensor:
    """Channels-last (B, C, Y, X) → a view (B, Y · X, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(1, _BLOCK * torch.get_num_threads() // rows.shape[1]))
