"""Reconstruction losses against direct computation."""

from __future__ import annotations

import numpy as np
import torch

from vqgan.losses.reconstruction import edge_loss, l1_loss, l2_loss


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 8, 8, generator=generator)


def test_pixel_errors() -> None:
    first, second = _pair()
    assert torch.allclose(l1_loss(first, second), (first - second).abs().mean())
    assert torch.allclose(l2_loss(first, second), (first - second).square().mean())


def test_weights_are_relative_to_their_mean() -> None:
    first, second = _pair()
    weights = torch.zeros(2, 1, 8, 8)
    weights[:, :, :4] = 7.0
    assert torch.allclose(l1_loss(first, second, weights), (first - second)[:, :, :4].abs().mean())
    assert torch.allclose(l2_loss(first, second, torch.full((2, 1, 8, 8), 3.0)), l2_loss(first, second))


def test_edges_are_numpy_differences_at_three_scales() -> None:
    first, second = _pair()
    expected, error = 0.0, (first - second).numpy()
    for _ in range(3):
        expected += np.abs(np.diff(error, axis=2)).mean() + np.abs(np.diff(error, axis=3)).mean()
        if error.shape[2] < 4:
            break
        error = error.reshape(2, 3, error.shape[2] // 2, 2, error.shape[3] // 2, 2).mean((3, 5))
    assert abs(float(edge_loss(first, second)) - expected) < 1e-5


def test_edges_ignore_a_change_of_level() -> None:
    first = _pair()[0]
    assert float(edge_loss(first + 0.25, first)) < 1e-6
