"""Finite scalar quantization (arXiv:2309.15505): every dimension is rounded to a few levels; there is no codebook to learn.

On `vector_quantize_pytorch.FSQ`. `codebook_size` is the product of the levels; a `codebook_dim` that differs from their number
puts a learned linear map before and after.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from cm3.core.errors import UsageError
from cm3.core.runfile import RunConfig
from vqgan.config import VQConfig, checked
from vqgan.quantizers.quantizer import Quantized, codes_to_grid, embed_codes, to_grid, to_rows

# Levels by codebook size: table 1 of the paper, and near round products of levels >= 5 where it has none.
LEVELS = {
    240: (8, 6, 5),
    512: (8, 8, 8),
    1000: (8, 5, 5, 5),
    4375: (7, 5, 5, 5, 5),
    8000: (8, 8, 5, 5, 5),
    15360: (8, 8, 8, 6, 5),
    64000: (8, 8, 8, 5, 5, 5),
}


class FSQOptions(RunConfig):
    """`levels` per dimension; None: the published ones for `codebook_size`."""

    levels: tuple[int, ...] | None = None


def build(config: VQConfig) -> FiniteScalar:
    """FSQ whose levels multiply to `codebook_size`. Raises `UsageError` when they don't."""
    options = checked(FSQOptions, config.quantizer_options, "quantizer_options of 'fsq'")
    levels = options.levels or LEVELS.get(config.codebook_size)
    if levels is None or min(levels) < 3 or math.prod(levels) != config.codebook_size:
        sizes = sorted({math.prod(known) for known in LEVELS.values()})
        product = f"levels {levels} give {math.prod(levels)} codes" if levels else "no levels are known"
        raise UsageError(
            f"quantizer 'fsq': {product} for codebook_size {config.codebook_size}; "
            f"take one of {sizes}, or give levels of 3 and more with that product"
        )
    return FiniteScalar(config, levels)


class FiniteScalar(nn.Module):
    """`FSQ` behind our protocol."""

    def __init__(self, config: VQConfig, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.codebook_size = config.codebook_size
        self.library = FSQ(list(levels), dim=config.codebook_dim)

    def forward(self, latents: Tensor) -> Quantized:
        quantized, codes = self.library(to_rows(latents)[None])
        grid = codes_to_grid(codes[0].long(), latents)
        return Quantized(to_grid(quantized[0], latents), grid, latents.new_zeros(()))

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        rows = self.library.project_in(to_rows(latents).float())
        return codes_to_grid(self.library.codes_to_indices(self.library.quantize(rows)).long(), latents)

    def lookup(self, codes: Tensor) -> Tensor:
        return embed_codes(codes, self.codebook())

    def codebook(self) -> Tensor:
        return self.library.project_out(self.library.implicit_codebook)

    def initialize(self, latents: Tensor, weights: Tensor, seed: int) -> None:
        """The levels are fixed."""
