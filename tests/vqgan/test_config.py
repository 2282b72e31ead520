"""Configurations: presets build, run files change them, mistakes are named."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from cm3.core.errors import UsageError
from cm3.core.runfile import validate
from vqgan.config import LossConfig, VQConfig, VQTrainConfig
from vqgan.losses.adversarial import PatchDiscriminator
from vqgan.losses.lpips import LPIPS
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


def test_pictures_too_small_for_the_loss_are_refused_before_the_run() -> None:
    """The smallest that are taken have features and logits; the networks themselves are the reference."""
    lpips = LossConfig(perceptual="lpips", lpips_weights="lpips.safetensors")
    with pytest.raises(UsageError, match=r"'lpips' needs pictures of 16 pixels and more, got image_size 8; take"):
        VQTrainConfig(image_size=8, loss=lpips).resolve()
    assert VQTrainConfig(image_size=16, loss=lpips).resolve().image_size == 16
    assert torch.isfinite(LPIPS()(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16))).all()
    for layers, least in ((1, 6), (2, 12), (3, 24)):
        run = VQTrainConfig(
            downsample_factor=1, loss=LossConfig(adversarial=0.1, adversarial_start=0, discriminator_layers=layers)
        )
        with pytest.raises(
            UsageError, match=rf"of {layers} layers needs pictures of {least} pixels and more, got image_size {least - 1}"
        ):
            run.model_copy(update={"image_size": least - 1}).resolve()
        assert run.model_copy(update={"image_size": least}).resolve().image_size == least
        assert PatchDiscriminator(2, layers)(torch.rand(2, 3, least, least)).shape == (2, 1, 1, 1)
        with pytest.raises(RuntimeError):
            PatchDiscriminator(2, layers)(torch.rand(2, 3, least - 1, least - 1))


def test_a_discriminator_that_would_never_start_is_refused() -> None:
    run = VQTrainConfig.model_validate({"loss": {"adversarial": 0.5, "adversarial_start": 399}})
    assert run.resolve().image_size == 48
    late = run.model_copy(update={"loss": run.loss.model_copy(update={"adversarial_start": 400})})
    with pytest.raises(UsageError, match=r"adversarial_start=400 comes after the last of train\.steps=400, so .* set it lower"):
        late.resolve()
    with pytest.raises(UsageError, match="lecam regularizes the discriminator, which adversarial 0 leaves out"):
        validate(VQTrainConfig, {"loss": {"lecam": 0.1}})
