"""The adversarial side: PatchGAN discriminator, hinge losses, VQGAN's adaptive weight, LeCAM.

PatchGAN: Isola et al., arXiv:1611.07004; adaptive weight: arXiv:2012.09841 eq. 7; LeCAM: arXiv:2104.03310.
Parameter names are those of taming-transformers' `loss.discriminator`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cm3.train.processes import added_up, process_count


class PatchDiscriminator(nn.Module):
    """Pixels (B, 3, Y, X) → logits (B, 1, y, x), one per overlapping patch; high means "real"."""

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
        width = channels
        for layer in range(1, layers + 1):
            before, width = width, channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            parts += [nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False), nn.BatchNorm2d(width)]
            parts += [nn.LeakyReLU(0.2, inplace=True)]
        parts.append(nn.Conv2d(width, 1, 4, padding=1))
        self.main = nn.Sequential(*parts)
        self.apply(_initialize)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.main(pixels)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """0-d loss of the discriminator from its logits on real pictures and reconstructions."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """0-d loss of the decoder from the discriminator's logits on its reconstructions."""
    return -fake.mean()


def adaptive_weight(reconstruction_loss: Tensor, adversarial_loss: Tensor, last_weight: Tensor) -> Tensor:
    """How much the adversarial loss must be scaled for its gradient at `last_weight` to be as long as the reconstruction loss's.

    0-d, in [0, 10000], without gradient. Both losses keep their graphs.
    """
    (main,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (adversarial,) = torch.autograd.grad(adversarial_loss, last_weight, retain_graph=True)
    return (main.norm() / (adversarial.norm() + 1e-4)).clamp(0.0, 1e4).detach()


class LeCAM(nn.Module):
    """Keeps the discriminator's logits near the moving averages of the other side; every call moves the averages, by
    the means over the equal parts of all processes."""

    real_average: Tensor
    fake_average: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """0-d loss from the logits on real pictures and reconstructions."""
        means = added_up(torch.stack([real.mean(), fake.mean()]).float()) / process_count()
        for average, mean in zip((self.real_average, self.fake_average), means):
            average.lerp_(mean, 1 - self.decay)
        return F.relu(real - self.fake_average).square().mean() + F.relu(self.real_average - fake).square().mean()


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
