"""`vector_quantize_pytorch.VectorQuantize` behind our protocol: its training, our lookup.

Training runs through the library (moving averages, dead-code restart, rotation trick, synchronization over
processes). Encoding takes the product-and-argmax of `nearest`, which gives the same codes several times faster.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from cm3.core.runfile import RunConfig
from cm3.core.seeding import torch_generator
from vqgan.config import VQConfig
from vqgan.quantizers.kmeans import kmeans
from vqgan.quantizers.nearest import most_similar_codes, nearest_codes
from vqgan.quantizers.quantizer import Quantized, codes_to_grid, embed_codes, to_rows


class LibraryOptions(RunConfig):
    """`decay` of the moving averages; `commitment` weight; codes whose average use falls below `restart_below` vectors per
    step are replaced by latents of the batch (0: never); `kmeans_iterations` at the start."""

    decay: float = Field(0.99, gt=0, lt=1)
    commitment: float = Field(0.25, ge=0)
    restart_below: float = Field(0.0, ge=0)
    kmeans_iterations: int = Field(10, ge=1)


class LibraryQuantizer(nn.Module):
    """A single-head `VectorQuantize` on image grids; `flags` go to it unchanged."""

    def __init__(self, config: VQConfig, options: LibraryOptions, **flags: Any) -> None:
        super().__init__()
        self.codebook_size = config.codebook_size
        self.options = options
        self.cosine = bool(flags.get("use_cosine_sim"))
        self.library = VectorQuantize(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            decay=options.decay,
            commitment_weight=options.commitment,
            threshold_ema_dead_code=options.restart_below,
            accept_image_fmap=True,
            **flags,
        )

    def forward(self, latents: Tensor) -> Quantized:
        quantized, codes, loss = self.library(latents.contiguous())
        return Quantized(quantized, codes, loss.sum())

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        find = most_similar_codes if self.cosine else nearest_codes
        return codes_to_grid(find(to_rows(latents), self.codebook()), latents)

    def lookup(self, codes: Tensor) -> Tensor:
        return embed_codes(codes, self.codebook())

    def codebook(self) -> Tensor:
        return self.library.codebook

    @torch.no_grad()
    def initialize(self, latents: Tensor, weights: Tensor, seed: int) -> None:
        rows = F.normalize(latents, dim=-1) if self.cosine else latents
        generator = torch_generator(seed, "codebook")
        centers = kmeans(rows, self.codebook_size, weights, generator, self.options.kmeans_iterations)
        if self.cosine:
            centers = F.normalize(centers, dim=-1)
        state = self.library._codebook
        state.embed.copy_(centers[None])
        state.embed_avg.copy_(centers[None])  # one vector of weight each, so that the averages move at once
        state.cluster_size.fill_(1.0)
