"""Index backpropagation quantization (IBQ, arXiv:2412.02692): all code vectors get a gradient, through the soft assignment.

Codes are chosen by dot product. Forward takes the one-hot choice, backward the softmax over all codes, so that large
codebooks of many dimensions stay in use. With e the code vector by the one-hot choice and q the one handed on,
loss = |q - z|² + a |z - sg(e)|² + b |e - sg(z)|² + c (mean entropy of the choices - entropy of their mean). Weights and
temperature are those of its authors' code (TencentARC/SEED-Voken), which has β = 0.25 at the codebook's term.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cm3.core.runfile import RunConfig
from cm3.core.seeding import torch_generator
from vqgan.config import VQConfig, checked
from vqgan.quantizers.kmeans import kmeans
from vqgan.quantizers.nearest import most_similar_codes
from vqgan.quantizers.quantizer import Quantized, codes_to_grid, embed_codes, to_grid, to_rows


class IBQOptions(RunConfig):
    """Weights of the losses (a, b, c above); `temperature` of the assignment in the entropy loss (low: sharp)."""

    commitment: float = Field(1.0, ge=0)
    codebook: float = Field(0.25, ge=0)
    entropy: float = Field(0.05, ge=0)
    temperature: float = Field(0.01, gt=0)
    kmeans_iterations: int = Field(10, ge=1)


def build(config: VQConfig) -> IBQ:
    """IBQ; `quantizer_options` as `IBQOptions`."""
    return IBQ(config, checked(IBQOptions, config.quantizer_options, "quantizer_options of 'ibq'"))


class IBQ(nn.Module):
    """Dot-product assignment with gradient to every code vector."""

    def __init__(self, config: VQConfig, options: IBQOptions) -> None:
        super().__init__()
        self.codebook_size = config.codebook_size
        self.options = options
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        nn.init.normal_(self.embedding.weight, std=config.codebook_dim**-0.5)

    def forward(self, latents: Tensor) -> Quantized:
        rows = to_rows(latents)  # (N, D)
        logits = rows @ self.embedding.weight.T  # (N, K)
        soft = logits.softmax(-1)
        codes = logits.argmax(-1)
        hard = F.one_hot(codes, self.codebook_size).to(soft.dtype)
        quantized = (hard + soft - soft.detach()) @ self.embedding.weight  # (N, D)
        vectors = hard @ self.embedding.weight
        loss = F.mse_loss(quantized, rows)
        loss = loss + self.options.commitment * F.mse_loss(rows, vectors.detach())
        loss = loss + self.options.codebook * F.mse_loss(vectors, rows.detach())
        entropy = _entropy_loss(logits / self.options.temperature)
        loss = loss + self.options.entropy * entropy
        grid = codes_to_grid(codes, latents)
        return Quantized(to_grid(quantized, latents), grid, loss, {"entropy_loss": entropy.detach()})

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        return codes_to_grid(most_similar_codes(to_rows(latents), self.embedding.weight), latents)

    def lookup(self, codes: Tensor) -> Tensor:
        return embed_codes(codes, self.embedding.weight)

    def codebook(self) -> Tensor:
        return self.embedding.weight

    @torch.no_grad()
    def initialize(self, latents: Tensor, weights: Tensor, seed: int) -> None:
        """K-means of the latents' directions, at their mean length: a dot product favors long vectors."""
        length = latents.norm(dim=-1).mean()
        generator = torch_generator(seed, "codebook")
        directions = F.normalize(latents, dim=-1)
        centers = kmeans(directions, self.codebook_size, weights, generator, self.options.kmeans_iterations)
        self.embedding.weight.copy_(F.normalize(centers, dim=-1) * length)


def _entropy_loss(logits: Tensor) -> Tensor:
    """Mean entropy of the rows minus entropy of their mean: low when each is sure and all codes are used. 0-d"""
    log_shares = logits.log_softmax(-1)
    shares = log_shares.exp()
    mean = shares.mean(0)
    tiny = torch.finfo(mean.dtype).tiny  # a share that underflows has no logarithm to take a gradient of
    return -(shares * log_shares).sum(-1).mean() + (mean * mean.clamp(min=tiny).log()).sum()
