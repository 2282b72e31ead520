"""Per-pixel errors, and a stand-in for a perceptual loss that needs no pretrained network.

All functions take reconstruction and target (B, 3, Y, X) in [-1, 1] and return a 0-d mean; `weights` (B, 1, Y, X) emphasizes
regions (Make-A-Scene weights faces and objects so) and is taken relative to its own mean.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def l1_loss(reconstruction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean absolute error."""
    return weighted_mean((reconstruction - target).abs(), weights)


def l2_loss(reconstruction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error."""
    return weighted_mean((reconstruction - target).square(), weights)


def edge_loss(reconstruction: Tensor, target: Tensor, weights: Tensor | None = None, scales: int = 3) -> Tensor:
    """Mean absolute difference of the horizontal and vertical steps between neighboring pixels, at `scales` halvings.

    It punishes blurred and displaced contours more than wrong levels. It knows nothing of perception beyond that.
    """
    total = reconstruction.new_zeros(())
    error = reconstruction - target  # differences are linear: the difference of the steps is the step of the difference
    for _ in range(scales):
        down, right = error[..., 1:, :] - error[..., :-1, :], error[..., 1:] - error[..., :-1]
        below, beside = (None, None) if weights is None else (weights[..., 1:, :], weights[..., 1:])
        total = total + weighted_mean(down.abs(), below) + weighted_mean(right.abs(), beside)
        if min(error.shape[-2:]) < 4:
            break
        error = F.avg_pool2d(error, 2)
        weights = None if weights is None else F.avg_pool2d(weights, 2)
    return total


def weighted_mean(error: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of errors (B, C, Y, X), each pixel counting its share of `weights` (B, 1, Y, X). 0-d"""
    if weights is None:
        return error.mean()
    return (error * (weights / weights.mean())).mean()
