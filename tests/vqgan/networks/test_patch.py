"""The patch network: exactly linear at the start, principal components against NumPy's SVD."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cm3.core.errors import UsageError
from vqgan.config import VQConfig
from vqgan.networks.patch import build, initialize, principal_components, split_patches


def _coders(**changes: object):
    torch.manual_seed(0)
    return build(VQConfig.model_validate({"image_size": 16, "downsample_factor": 4, "codebook_dim": 48, **changes}))


def _round_trip(coders, pixels: torch.Tensor) -> torch.Tensor:
    return coders.decoder(coders.from_code(coders.to_code(coders.encoder(pixels))))


@torch.no_grad()
def test_with_all_components_the_round_trip_is_exact() -> None:
    pixels = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    coders = _coders()
    patches = split_patches(pixels, 4)
    initialize(coders, patches, torch.ones(len(patches)))
    assert torch.allclose(_round_trip(coders, pixels), pixels, atol=1e-5)


@torch.no_grad()
def test_fewer_components_leave_the_error_of_the_rest() -> None:
    pixels = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    coders = _coders(codebook_dim=20)
    patches = split_patches(pixels, 4)
    initialize(coders, patches, torch.ones(len(patches)))
    error = (_round_trip(coders, pixels) - pixels).square().sum() / len(patches)
    centered = (patches - patches.mean(0)).double().numpy()
    singular = np.linalg.svd(centered, compute_uv=False)
    assert float(error) == pytest.approx((singular[20:] ** 2).sum() / len(patches), rel=1e-4)


def test_principal_components_respect_weights() -> None:
    points = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    weights = torch.randint(1, 4, (50,), generator=torch.Generator().manual_seed(3)).float()
    mean, directions = principal_components(points, weights, 3)
    repeated = points.repeat_interleave(weights.long(), 0)
    expected_mean, expected = principal_components(repeated, torch.ones(len(repeated)), 3)
    assert torch.allclose(mean, expected_mean, atol=1e-6)
    assert torch.allclose((directions @ expected.T).abs(), torch.eye(3), atol=1e-4)


def test_missing_components_are_zero() -> None:
    directions = principal_components(torch.randn(20, 4), torch.ones(20), 6)[1]
    assert directions.shape == (6, 4)
    assert torch.equal(directions[4:], torch.zeros(2, 4))


def test_residual_stages_can_be_trained_from_their_zero_start() -> None:
    coders = _coders(network_options={"pixel_channels": 4})
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    _round_trip(coders, pixels).square().mean().backward()
    assert coders.decoder.smooth.out.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    assert coders.encoder.blocks[0].out.weight.grad.abs().sum() > 0  # type: ignore[union-attr, index]


def test_unknown_options_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="did you mean 'width'"):
        _coders(network_options={"widht": 3})
