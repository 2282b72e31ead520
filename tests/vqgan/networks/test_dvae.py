"""The dVAE: shapes, the published sizes, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from cm3.core.errors import UsageError
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.presets import preset


def _config(**changes: object) -> VQConfig:
    return VQConfig.model_validate(
        {
            "image_size": 16,
            "downsample_factor": 4,
            "codebook_size": 32,
            "codebook_dim": 8,
            "network": "dvae",
            "network_options": {"hidden": 8, "groups": 3},
            "quantizer": "gumbel",
            "quantizer_options": {"latent_dim": 32},
            **changes,
        }
    )


@torch.no_grad()
def test_it_decodes_six_maps_and_three_channels() -> None:
    output = VQModel(_config())(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert output.decoded.shape == (2, 6, 16, 16)
    assert output.reconstruction.shape == (2, 3, 16, 16)
    assert output.codes.shape == (2, 4, 4)


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        model = VQModel(preset("dalle"))
    encoder = sum(p.numel() for p in model.encoder.parameters()) + sum(p.numel() for p in model.quantizer.proj.parameters())
    decoder = sum(p.numel() for p in model.decoder.parameters()) + model.quantizer.embed.weight.numel()
    assert encoder / 1e6 == pytest.approx(53.8, abs=0.1)
    assert decoder / 1e6 == pytest.approx(43.8, abs=0.1)


def test_it_goes_with_the_gumbel_quantizer_only() -> None:
    with pytest.raises(UsageError, match="goes with quantizer 'gumbel'"):
        VQModel(_config(quantizer="ema", quantizer_options={}))
    with pytest.raises(UsageError, match="reduces by 4"):
        VQModel(_config(downsample_factor=8))
