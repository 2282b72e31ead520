"""The adversarial side: sizes of PatchGAN, hinge, the adaptive weight by hand, LeCAM's averages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqgan.losses.adversarial import LeCAM, PatchDiscriminator, adaptive_weight, generator_loss, hinge_discriminator_loss


def test_the_discriminator_is_the_patchgan_of_70_pixels() -> None:
    discriminator = PatchDiscriminator()
    convolutions = 3 * 64 * 16 + 64 + 64 * 128 * 16 + 128 * 256 * 16 + 256 * 512 * 16 + 512 * 16 + 1
    norms = 2 * (128 + 256 + 512)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == convolutions + norms
    pixels = torch.zeros(2, 3, 64, 64, requires_grad=True)
    logits = discriminator.eval()(pixels)
    assert logits.shape == (2, 1, 6, 6)
    logits[0, 0, 2, 3].backward()
    assert pixels.grad is not None
    seen = pixels.grad.abs().sum((0, 1)) > 0
    assert int(seen.any(1).sum()) <= 70
    assert next(iter(discriminator.state_dict())) == "main.0.weight"


def test_hinge() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.5])
    assert float(hinge_discriminator_loss(real, fake)) == pytest.approx(0.5 * (0.25 + 0.75))
    assert float(generator_loss(fake)) == pytest.approx(1.25)


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    layer = nn.Linear(3, 1, bias=False)
    x = torch.tensor([[3.0, 0.0, 4.0]])
    main, adversarial = (10 * layer(x)).sum(), (2 * layer(x)).sum()
    assert float(adaptive_weight(main, adversarial, layer.weight)) == pytest.approx(5.0, rel=1e-4)
    main.backward()  # the graphs are still there
    assert float(adaptive_weight((1e9 * layer(x)).sum(), (layer(x) * 1e-9).sum(), layer.weight)) == pytest.approx(1e4)


def test_lecam_pulls_towards_the_averages_of_the_other_side() -> None:
    lecam = LeCAM(decay=0.0)
    assert float(lecam(torch.tensor([2.0]), torch.tensor([-1.0]))) == pytest.approx(9 + 9)
    lecam = LeCAM(decay=0.9)
    lecam(torch.tensor([2.0]), torch.tensor([-1.0]))
    assert float(lecam.real_average) == pytest.approx(0.2)
    assert float(lecam.fake_average) == pytest.approx(-0.1)
