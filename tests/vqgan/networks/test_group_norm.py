"""Group normalization against double precision, on flat pictures above all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vqgan.model import VQModel
from vqgan.networks.group_norm import GroupNorm
from vqgan.presets import preset


def _flat(channels: int, side: int, edge: float) -> Tensor:
    """Each channel one number, with a stripe of another as the border of a drawing gives it: (1, C, Y, X)."""
    x = torch.rand(1, channels, 1, 1).expand(1, channels, side, side).clone()
    x[:, :, :2] += edge
    return x


@pytest.mark.parametrize("side", [8, 96])  # small maps and those in blocks
@pytest.mark.parametrize("groups", [32, 64])  # of two channels and of one
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@torch.no_grad()
def test_every_picture_to_float32s_rounding(side: int, groups: int, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    norm = GroupNorm(groups, 64, eps=1e-6)
    norm.weight.uniform_(0.5, 1.5), norm.bias.uniform_(-1, 1)
    for x in (_flat(64, side, 0.0), _flat(64, side, 0.1), torch.randn(2, 64, side, side) + 3):
        expected = F.group_norm(x.double(), groups, norm.weight.double(), norm.bias.double(), norm.eps)
        usual = (F.group_norm(x, groups, norm.weight, norm.bias, norm.eps) - expected).abs().max()
        given = x.contiguous(memory_format=layout)
        for result, wanted in ((norm(given), expected), (norm.silu(given), F.silu(expected))):
            assert result.is_contiguous(memory_format=layout)
            assert (result - wanted).abs().max() < 2e-6 + 4 * usual
        assert torch.equal(given, x)
        assert torch.equal(norm.silu(given.clone(memory_format=layout), overwrite=True), norm.silu(given))


def test_gradients_are_those_of_double_precision() -> None:
    torch.manual_seed(0)
    norm = GroupNorm(32, 64, eps=1e-6)
    x, weights = _flat(64, 96, 0.1), torch.randn(1, 64, 96, 96)
    gradients = []
    for module, given in ((norm, x.contiguous(memory_format=torch.channels_last)), (copy.deepcopy(norm).double(), x.double())):
        given.requires_grad_()
        (module.silu(given, overwrite=True) * weights).sum().backward()
        gradients.append([given.grad, module.weight.grad, module.bias.grad])
    for ours, wanted in zip(*gradients, strict=True):
        assert (ours - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@torch.no_grad()
def test_a_white_picture_is_that_of_the_plain_layout() -> None:
    config = preset("llamagen-16")
    options = {**config.network_options, "channels": 32, "latent_channels": 32}
    torch.manual_seed(0)
    model = VQModel(config.model_validate(config.model_dump() | {"image_size": 128, "network_options": options})).eval()
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    drawing = torch.ones(1, 3, 128, 128)
    drawing[:, 1:, 40:90, 50:70] = -0.5
    for pixels in (torch.ones(1, 3, 128, 128), drawing):
        latents = model.latents(pixels)
        assert torch.allclose(latents, plain.quant_conv(plain.encoder(pixels)), atol=1e-5)
