"""How close two pictures are: PSNR and SSIM per picture, on batches of float images.

Both take (B, C, Y, X) float tensors whose values span `data_range` (1 for [0, 1], 2 for pixels in [-1, 1]) and return (B,)
float32. They are pure functions; average over pictures outside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cm3.core.errors import UsageError

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def psnr(images: Tensor, references: Tensor, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio in dB, 10·log10(data_range² / mean squared error); infinite where pictures are equal. (B,)

    Raises `UsageError` when the shapes differ.
    """
    _check_shapes(images, references)
    error = (images.double() - references.double()).square().mean(dim=(1, 2, 3))  # (B,)
    return (10 * torch.log10(data_range**2 / error)).float()


def ssim(images: Tensor, references: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity in [-1, 1], 1 for equal pictures; the mean over channels and window positions. (B,)

    The definition of Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment", IEEE TIP 13(4), 2004: Gaussian window of
    11×11 with σ = 1.5, K1 = 0.01, K2 = 0.03, population covariance, only windows that lie wholly inside.
    Raises `UsageError` when the shapes differ or a side is under 11.
    """
    _check_shapes(images, references)
    if min(images.shape[-2:]) < _WINDOW:
        raise UsageError(f"SSIM needs pictures of at least {_WINDOW}×{_WINDOW}, got {tuple(images.shape[-2:])}")
    x, y = images.double(), references.double()
    mean_x, mean_y = _blur(x), _blur(y)  # (B, C, Y - 10, X - 10)
    variance_x = _blur(x * x) - mean_x**2
    variance_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).float()


def _blur(images: Tensor) -> Tensor:
    """Separable Gaussian window over (B, C, Y, X), without padding."""
    offsets = torch.arange(_WINDOW, dtype=images.dtype, device=images.device) - _WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    planes = rearrange(images, "B C Y X -> (B C) 1 Y X")
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return rearrange(planes, "(B C) 1 Y X -> B C Y X", B=images.shape[0])


def _check_shapes(images: Tensor, references: Tensor) -> None:
    if images.shape != references.shape or images.ndim != 4:
        shapes = f"{tuple(images.shape)} and {tuple(references.shape)}"
        raise UsageError(f"expected two batches of one shape (B, C, Y, X), got {shapes}")
