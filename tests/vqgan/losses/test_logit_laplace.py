"""The logit-Laplace likelihood: a density, inverted where it should be."""

from __future__ import annotations

import math

import torch

from vqgan.losses.logit_laplace import logit_laplace_loss, mean_pixels, squeeze, unsqueeze


def test_squeeze_and_back() -> None:
    pixels = torch.linspace(-1, 1, 11)
    assert torch.allclose(unsqueeze(squeeze(pixels)), pixels, atol=1e-6)
    assert squeeze(pixels).min() >= 0.1 - 1e-6
    assert squeeze(pixels).max() <= 0.9 + 1e-6


def test_the_density_integrates_to_one() -> None:
    values = torch.linspace(0, 1, 200_001, dtype=torch.float64)[1:-1]
    pixels = 2 * (values - 0.1) / 0.8 - 1
    center, log_scale = 0.3, math.log(0.5)
    maps = torch.stack([torch.full_like(values, center), torch.full_like(values, log_scale)])
    density = torch.stack(
        [
            torch.exp(-logit_laplace_loss(maps[:, i].view(1, 2, 1, 1), pixels[i].view(1, 1, 1, 1)))
            for i in range(0, len(values), 500)
        ]
    )
    assert abs(float(density.mean()) - 1) < 5e-3


def test_it_is_least_at_the_pixels() -> None:
    pixels = torch.rand(2, 3, 4, 4) * 2 - 1
    center = torch.logit(squeeze(pixels))
    right = torch.cat([center, torch.full_like(center, -2.0)], 1)
    wrong = torch.cat([center + 0.2, torch.full_like(center, -2.0)], 1)
    assert logit_laplace_loss(right, pixels) < logit_laplace_loss(wrong, pixels)
    assert torch.allclose(mean_pixels(right), pixels, atol=1e-5)
