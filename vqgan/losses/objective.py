"""The two losses of tokenizer training as functions: what the tokenizer minimizes, and what the discriminator does.

    tokenizer       reconstruction [+ perceptual] + quantizer [+ adversarial · adaptive weight]
    discriminator   hinge [+ LeCAM]

Each takes what it needs and returns a loss with its metrics; who owns networks and steps is `vqgan.task`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cm3.train.task import Metrics
from vqgan.config import LossConfig
from vqgan.losses.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss
from vqgan.losses.logit_laplace import logit_laplace_loss
from vqgan.losses.lpips import LPIPS
from vqgan.losses.reconstruction import edge_loss, l1_loss, l2_loss
from vqgan.model import VQOutput


def reconstruction_loss(
    output: VQOutput, pixels: Tensor, weights: LossConfig, regions: Tensor | None = None, lpips: LPIPS | None = None
) -> Tensor:
    """The weighted sum of the terms that compare with the original, 0-d. pixels (B, 3, Y, X); regions: pixel weights
    (B, 1, Y, X) or None; `lpips` is needed where `weights.perceptual` says so."""
    reconstruction = output.reconstruction
    total = reconstruction.new_zeros(())
    if weights.logit_laplace:
        total = total + weights.logit_laplace * logit_laplace_loss(output.decoded, pixels, regions)
    if weights.l1:
        total = total + weights.l1 * l1_loss(reconstruction, pixels, regions)
    if weights.l2:
        total = total + weights.l2 * l2_loss(reconstruction, pixels, regions)
    if weights.perceptual == "edges":
        total = total + weights.perceptual_weight * edge_loss(reconstruction, pixels, regions)
    if weights.perceptual == "lpips" and lpips is not None:
        total = total + weights.perceptual_weight * lpips(reconstruction, pixels, regions).mean()
    return total


def tokenizer_loss(
    output: VQOutput, main: Tensor, weights: LossConfig, discriminator: nn.Module | None, last_weight: Tensor
) -> tuple[Tensor, Metrics]:
    """`main` (from `reconstruction_loss`), the quantizer's loss, and, with a `discriminator`, fooling it. 0-d, metrics.

    The adversarial term is scaled so that its gradient at `last_weight` is as long as that of `main`, where the adaptive
    weight is on.
    """
    total = main + weights.quantizer * output.quantizer_loss
    metrics: Metrics = {"reconstruction": main.detach(), "quantizer": output.quantizer_loss.detach(), **output.metrics}
    if discriminator is not None:
        fooling = generator_loss(discriminator(output.reconstruction))
        factor = adaptive_weight(main, fooling, last_weight) if weights.adaptive_weight else torch.ones(())
        total = total + weights.adversarial * factor * fooling
        metrics |= {"adversarial": fooling.detach(), "adaptive_weight": factor}
    return total, metrics


def discriminator_loss(
    discriminator: nn.Module,
    pixels: Tensor,
    reconstruction: Tensor,
    lecam: Callable[[Tensor, Tensor], Tensor] | None = None,
    lecam_weight: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """Tell `pixels` from their `reconstruction` (without gradient), both (B, 3, Y, X). 0-d, metrics."""
    real, fake = discriminator(pixels), discriminator(reconstruction)
    loss = hinge_discriminator_loss(real, fake)
    if lecam is not None and lecam_weight:
        loss = loss + lecam_weight * lecam(real, fake)
    return loss, {"real": real.detach().mean(), "fake": fake.detach().mean()}
