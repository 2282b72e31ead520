"""The VQGAN network against transformers' implementation of the same architecture, on random weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, JanusVQVAE, JanusVQVAEConfig

from cm3.core.errors import UsageError
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.networks.taming import _Upsample

SIZES = {"embed_dim": 8, "num_embeddings": 32, "latent_channels": 16, "base_channels": 32, "channel_multiplier": [1, 1, 2]}


def _ours(attention_levels: tuple[int, ...]) -> VQModel:
    options = {
        "channels": 32,
        "channel_multipliers": (1, 1, 2),
        "residual_blocks": 1,
        "attention_levels": attention_levels,
        "latent_channels": 16,
    }
    config = VQConfig(
        image_size=32,
        downsample_factor=4,
        codebook_size=32,
        codebook_dim=8,
        network="taming",
        network_options=options,
        quantizer="vq",
    )
    return VQModel(config).eval()


@torch.no_grad()
def test_encoder_is_chameleons() -> None:
    torch.manual_seed(0)
    reference = ChameleonVQVAE(ChameleonVQVAEConfig(**SIZES, num_res_blocks=1, attn_resolutions=None)).eval()
    model = _ours(())
    missing = model.load_state_dict({_own(name): tensor for name, tensor in reference.state_dict().items()}, strict=False)
    assert not missing.unexpected_keys
    assert all(name.startswith("decoder.") for name in missing.missing_keys)
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.allclose(model.latents(pixels), reference.quant_conv(reference.encoder(pixels)), atol=1e-5)
    assert torch.equal(model.encode(pixels).flatten(), reference.encode(pixels).image_tokens.flatten())


@torch.no_grad()
def test_decoder_is_that_of_janus() -> None:
    torch.manual_seed(1)
    reference = JanusVQVAE(JanusVQVAEConfig(**SIZES, num_res_blocks=1)).eval()
    model = _ours((2,))
    renamed = {}
    for name, tensor in reference.state_dict().items():
        if name.startswith("decoder.up."):  # stored from the lowest resolution up
            head, level, rest = name[:11], name[11], name[12:]
            name = f"{head}{2 - int(level)}{rest}"
        renamed[_own(name)] = tensor
    model.load_state_dict(renamed)
    quantized = torch.randn(2, 8, 8, 8)
    expected = reference.decoder(reference.post_quant_conv(quantized))
    assert torch.allclose(model.reconstruct(quantized), expected, atol=1e-5)


def test_writing_over_the_norms_output_leaves_gradients_right() -> None:
    torch.manual_seed(2)
    model = _ours((2,)).double()
    pixels = torch.rand(1, 3, 8, 8, dtype=torch.float64) * 2 - 1
    weight = model.encoder.down[0].block[0].norm1.weight  # type: ignore[union-attr,index]
    model.latents(pixels).square().sum().backward()
    step = torch.zeros_like(weight)
    step[3] = 1e-6
    with torch.no_grad():
        weight += step
        above = model.latents(pixels).square().sum()
        weight -= 2 * step
        below = model.latents(pixels).square().sum()
    assert weight.grad is not None
    assert float(weight.grad[3]) == pytest.approx(float((above - below) / 2e-6), rel=1e-5)


def _own(name: str) -> str:
    return name.replace("quantize.", "quantizer.", 1) if name.startswith("quantize.") else name


def test_factor_and_levels_must_agree() -> None:
    with pytest.raises(UsageError, match="reduces by 4"):
        VQModel(
            VQConfig(image_size=32, downsample_factor=8, network="taming", network_options={"channel_multipliers": (1, 1, 2)})
        )


def test_attention_must_be_at_a_level_that_exists() -> None:
    options = {"channel_multipliers": (1, 2), "attention_levels": (2,)}
    with pytest.raises(UsageError, match="attention_levels"):
        VQModel(VQConfig(image_size=32, downsample_factor=2, network="taming", network_options=options))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_upsampling_is_the_convolution_of_the_doubled_picture(layout: torch.memory_format) -> None:
    """Against interpolation and the 3×3 convolution as they are written down, gradients included; odd sides, borders too."""
    upsample = _Upsample(8).double().to(memory_format=layout)
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=layout).requires_grad_()
    inputs = [x, *upsample.parameters()]
    expected = upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    found = upsample(x)
    assert found.stride() == expected.stride()
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(result.square().sum(), inputs) for result in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
