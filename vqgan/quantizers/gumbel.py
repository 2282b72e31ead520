"""Gumbel-softmax relaxation (DALL-E's dVAE, arXiv:2102.12092): a soft choice of code that hardens while training.

Latents are mapped to logits over the codes; in training the mixture of code vectors under Gumbel noise is handed on,
otherwise the vector of the largest logit. The KL divergence to the uniform distribution is the quantizer's loss, with its
weight and the temperature annealed by step on cosine curves as in the paper (its appendix A.2).
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cm3.core.runfile import RunConfig
from vqgan.config import VQConfig, checked
from vqgan.quantizers.quantizer import Quantized, embed_codes


class GumbelOptions(RunConfig):
    """`latent_dim`: channels of the latents, None: codebook_dim. Temperature from 1 to `final_temperature` over
    `temperature_steps`; KL weight from 0 to `kl_weight` (for losses per pixel, as in the paper) over `kl_steps`.
    `straight_through`: hand on the hard choice in training, too."""

    latent_dim: int | None = Field(None, ge=1)
    final_temperature: float = Field(1 / 16, gt=0)
    temperature_steps: int = Field(150_000, ge=1)
    kl_weight: float = Field(6.6, ge=0)
    kl_steps: int = Field(5_000, ge=1)
    straight_through: bool = False


def build(config: VQConfig) -> Gumbel:
    """Gumbel-softmax quantizer; `quantizer_options` as `GumbelOptions`."""
    return Gumbel(config, checked(GumbelOptions, config.quantizer_options, "quantizer_options of 'gumbel'"))


class Gumbel(nn.Module):
    """Logits by a 1×1 convolution `proj`, code vectors in `embed` (taming's names)."""

    def __init__(self, config: VQConfig, options: GumbelOptions) -> None:
        super().__init__()
        self.codebook_size = config.codebook_size
        self.options = options
        self.proj = nn.Conv2d(options.latent_dim or config.codebook_dim, config.codebook_size, 1)
        self.embed = nn.Embedding(config.codebook_size, config.codebook_dim)
        self._pixel_values = 3 * config.downsample_factor**2  # under one code
        self._temperature, self._kl_weight = 1.0, 0.0

    def at_step(self, step: int) -> None:
        """Set temperature and KL weight for training step `step`."""
        options = self.options
        self._temperature = _cosine(1.0, options.final_temperature, step / options.temperature_steps)
        self._kl_weight = _cosine(0.0, options.kl_weight, step / options.kl_steps)

    def forward(self, latents: Tensor) -> Quantized:
        logits = self.proj(latents).float()  # (B, K, h, w)
        if self.training:
            shares = F.gumbel_softmax(logits, tau=self._temperature, hard=self.options.straight_through, dim=1)
            quantized = torch.einsum("bkhw,kd->bdhw", shares, self.embed.weight)
        else:
            quantized = self.lookup(logits.argmax(1))
        divergence = self._divergence(logits)
        loss = self._kl_weight / self._pixel_values * divergence
        metrics = {"kl": divergence.detach(), "temperature": logits.new_tensor(self._temperature)}
        return Quantized(quantized, logits.argmax(1), loss, metrics)

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        return self.proj(latents).argmax(1)

    def lookup(self, codes: Tensor) -> Tensor:
        return embed_codes(codes, self.embed.weight)

    def codebook(self) -> Tensor:
        return self.embed.weight

    def initialize(self, latents: Tensor, weights: Tensor, seed: int) -> None:
        """Logits and vectors start random: the relaxation uses all codes at first."""

    def _divergence(self, logits: Tensor) -> Tensor:
        """Mean over positions of KL(q ‖ uniform), in nats. 0-d"""
        log_shares = logits.log_softmax(1)
        return (log_shares.exp() * (log_shares + math.log(self.codebook_size))).sum(1).mean()


def _cosine(first: float, last: float, progress: float) -> float:
    """From `first` at progress 0 to `last` at 1 and after, along half a cosine."""
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
