"""Configurations: presets build, run files change them, mistakes are named."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from cm3.core.errors import UsageError
from vqgan.config import LossConfig, VQConfig, VQTrainConfig
from vqgan.model import VQModel
from vqgan.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_has_the_grid_it_states(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = VQModel(config)
        codes = model.encode(torch.empty(1, 3, config.image_size, config.image_size))
        pixels = model.decode(codes)
    assert tuple(codes.shape) == (1, *config.grid_shape)
    assert tuple(pixels.shape) == (1, 3, config.image_size, config.image_size)


@pytest.mark.parametrize(("name", "millions", "tokens"), [("llamagen-16", 71.9, 256), ("make-a-scene-256", 66.9, 1024)])
def test_published_sizes(name: str, millions: float, tokens: int) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = VQModel(config)
    codebook = config.codebook_size * config.codebook_dim
    weights = sum(parameter.numel() for parameter in model.parameters())
    total = weights if config.quantizer == "vq" else weights + codebook  # a buffer when it is a moving average
    assert total / 1e6 == pytest.approx(millions, abs=0.2)
    assert config.grid_shape[0] * config.grid_shape[1] == tokens


def test_a_run_changes_single_values_of_its_preset() -> None:
    run = VQTrainConfig(preset="tiny", codebook_size=256, image_size=32, tokenizer={"quantizer": "cosine", "codebook_dim": 8})
    config = run.resolve()
    assert (config.codebook_size, config.image_size, config.quantizer, config.codebook_dim) == (256, 32, "cosine", 8)
    assert config.downsample_factor == preset("tiny").downsample_factor


def test_mistakes_are_named() -> None:
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        VQTrainConfig(preset="tinny").resolve()
    with pytest.raises(UsageError, match="did you mean 'codebook_dim'"):
        VQTrainConfig(tokenizer={"codebok_dim": 8}).resolve()
    with pytest.raises(UsageError, match="not a multiple of downsample_factor"):
        VQTrainConfig(image_size=50).resolve()
    with pytest.raises(UsageError, match=r"set loss\.logit_laplace=1"):
        VQTrainConfig(preset="dalle").resolve()
    assert VQTrainConfig(preset="dalle", loss=LossConfig(logit_laplace=1.0)).resolve().network == "dvae"
    with pytest.raises(ValidationError, match="needs lpips_weights"):
        LossConfig(perceptual="lpips")  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="unknown network 'pach'"):
        VQModel(VQConfig(network="pach"))
