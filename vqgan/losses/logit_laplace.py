"""The logit-Laplace likelihood of DALL-E's dVAE (arXiv:2102.12092, appendix A.3): errors of bounded pixels.

A decoder with this likelihood emits six maps: μ and ln b for each color channel. Pixels in [-1, 1] are first squeezed into
[ε, 1 - ε] of the unit interval, because the density has its support strictly inside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqgan.losses.reconstruction import weighted_mean

_EPSILON = 0.1


def squeeze(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] → values in [ε, 1 - ε]."""
    return (1 - 2 * _EPSILON) * (pixels + 1) / 2 + _EPSILON


def unsqueeze(values: Tensor) -> Tensor:
    """The inverse of `squeeze`, clamped to [-1, 1]."""
    return (2 * (values - _EPSILON) / (1 - 2 * _EPSILON) - 1).clamp(-1, 1)


def mean_pixels(maps: Tensor) -> Tensor:
    """Maps (B, 6, Y, X) → pixels (B, 3, Y, X): σ(μ), unsqueezed; the scale plays no part."""
    return unsqueeze(torch.sigmoid(maps[:, :3]))


def logit_laplace_loss(maps: Tensor, pixels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean negative log density per pixel value, 0-d; maps (B, 6, Y, X), pixels (B, 3, Y, X) in [-1, 1]; pixel weights
    (B, 1, Y, X) relative to their mean.

    f(x | μ, b) = exp(-|logit(x) - μ| / b) / (2 b x (1 - x)).
    """
    center, log_scale = maps.chunk(2, dim=1)
    values = squeeze(pixels)
    density = -(torch.logit(values) - center).abs() * torch.exp(-log_scale) - log_scale - torch.log(2 * values * (1 - values))
    return weighted_mean(-density, weights)
