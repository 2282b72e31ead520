"""Group normalization (arXiv:1803.08494) that is exact on every picture, in the layout that convolutions of a CPU are fast in.

torch's own kernel for channels-last tensors on a CPU adds up each channel one number after the other. Over a flat picture of 256²
the sums are off by some 10^-3, and what is left after subtracting them is wrong by more than the pixels' differences. Here small
maps go through the other layout, whose kernel adds in a tree; large ones are summed line by line around a value of their own, and
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
        for picture, result in zip(_channels_last(x), _channels_last(out)):
            mean, gain = self._statistics(picture)
            offset = self.bias - mean * gain
            folded = bool((mean * gain).abs().max() < _SMALL)  # one pass less, where its rounding does not show
            for part, normed in zip(_blocks(picture), _blocks(result)):
                if folded:
                    torch.addcmul(offset, part, gain, out=normed)
                else:
                    torch.addcmul(self.bias, torch.sub(part, mean, out=normed), gain, out=normed)
                if activate:
                    F.silu(normed, inplace=True)
        return out

    def _statistics(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """For each channel the mean of its group and what a deviation is multiplied by, (C,) each, of one picture (Y, X, C).

        Moments of every line and their sum as in Chan, Golub, LeVeque 1979, the lines in float32, the rest in double precision.
        A line is summed by one thread, whose cache holds it.
        """
        centers = picture[:, picture.shape[1] // 3].contiguous()  # (Y, C); a flat line deviates from it by nothing
        sums, squares = torch.empty_like(centers), torch.empty_like(centers)
        parts, start = _blocks(picture), 0
        buffer = torch.empty_like(parts[0])
        for part in parts:
            lines = slice(start, start := start + len(part))
            deviations = torch.sub(part, centers[lines, None], out=buffer[: len(part)])
            torch.sum(deviations, 1, out=sums[lines])
            torch.sum(deviations.square_(), 1, out=squares[lines])
        offsets = sums.double() / picture.shape[1]
        means, variances = _joined(centers + offsets, squares.double() / picture.shape[1] - offsets.square())  # (C,)
        mean, variance = _joined(means.view(self.num_groups, -1).T, variances.view(self.num_groups, -1).T)  # (groups,)
        channels = self.num_channels // self.num_groups
        gain = self.weight * (variance + self.eps).rsqrt().repeat_interleave(channels)
        return mean.repeat_interleave(channels).to(picture.dtype), gain.to(picture.dtype)


def _joined(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances (n, C) of n samples of one size → those of all of them together, (C,) each."""
    mean = means.mean(0)
    return mean, (variances.clamp_min(0) + (means - mean).square()).mean(0)


def _loses_sums(x: Tensor) -> bool:
    """Whether torch's kernel for `x` is the one that adds naively."""
    return x.device.type == "cpu" and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _suits_blocks(x: Tensor) -> bool:
    """Whether blocks pay: the maps are large, and nobody asks for gradients."""
    return not torch.is_grad_enabled() and x.dtype == torch.float32 and x[0].numel() > _BLOCK


def _channels_last(x: Tensor) -> Tensor:
    """Channels-last (B, C, Y, X) → a view (B, Y, X, C)."""
    return x.permute(0, 2, 3, 1)


def _blocks(picture: Tensor) -> tuple[Tensor, ...]:
    """Lines of (Y, X, C) that fit the threads' caches."""
    return picture.split(max(1, _BLOCK * torch.get_num_threads() // picture[0].numel()))
