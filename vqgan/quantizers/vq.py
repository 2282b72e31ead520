"""The classic learned codebook (VQ-VAE, arXiv:1711.00937) with the commitment weight where the paper has it.

taming-transformers (and Chameleon after it) put β on the codebook term by mistake; here
loss = |sg(z) - e|² + β |z - sg(e)|². The parameter is named `embedding.weight` as in all published checkpoints.
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
from vqgan.quantizers.nearest import nearest_codes
from vqgan.quantizers.quantizer import Quantized, codes_to_grid, embed_codes, to_rows


class VQOptions(RunConfig):
    """`commitment`: β; `kmeans_iterations` at the start; `unit_lookup`: hand on code vectors at unit length (as Janus does)."""

    unit_lookup: bool = False
    commitment: float = Field(0.25, ge=0)
    kmeans_iterations: int = Field(10, ge=1)


def build(config: VQConfig) -> VQ:
    """Learned codebook; `quantizer_options` as `VQOptions`."""
    return VQ(config, checked(VQOptions, config.quantizer_options, "quantizer_options of 'vq'"))


class VQ(nn.Module):
    """Nearest code vector with straight-through gradient; the vectors are trained by the optimizer."""

    def __init__(self, config: VQConfig, options: VQOptions) -> None:
        super().__init__()
        self.codebook_size = config.codebook_size
        self.options = options
        self.embedding = nn.Embedding(config.codebook_size, config.codebook_dim)
        bound = 1.0 / config.codebook_size
        nn.init.uniform_(self.embedding.weight, -bound, bound)

    def forward(self, latents: Tensor) -> Quantized:
        codes = self.encode(latents)
        vectors = self.lookup(codes)
        codebook_loss = F.mse_loss(vectors, latents.detach())
        commitment_loss = F.mse_loss(latents, vectors.detach())
        quantized = latents + (vectors - latents).detach()
        loss = codebook_loss + self.options.commitment * commitment_loss
        return Quantized(quantized, codes, loss, {"commitment": commitment_loss.detach()})

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        return codes_to_grid(nearest_codes(to_rows(latents), self.embedding.weight), latents)

    def lookup(self, codes: Tensor) -> Tensor:
        return embed_codes(codes, self.codebook())

    def codebook(self) -> Tensor:
        return F.normalize(self.embedding.weight, dim=-1) if self.options.unit_lookup else self.embedding.weight

    @torch.no_grad()
    def initialize(self, latents: Tensor, weights: Tensor, seed: int) -> None:
        generator = torch_generator(seed, "codebook")
        self.embedding.weight.copy_(kmeans(latents, self.codebook_size, weights, generator, self.options.kmeans_iterations))
