"""Lookup-free quantization (MAGVIT-v2, arXiv:2310.05737): a code is the signs of its dimensions, used evenly by an entropy loss.

On `vector_quantize_pytorch.LFQ`. `codebook_size` is a power of two; a `codebook_dim` other than its exponent puts a learned
linear map before and after.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from vector_quantize_pytorch import LFQ

from cm3.core.errors import UsageError
from cm3.core.runfile import RunConfig
from vqgan.config import VQConfig, checked
from vqgan.quantizers.quantizer import Quantized, codes_to_grid, embed_codes, to_grid, to_rows


class LFQOptions(RunConfig):
    """Weights of the entropy and commitment losses; `inverse_temperature` of the soft assignment in the entropy."""

    entropy: float = Field(0.1, ge=0)
    commitment: float = Field(0.25, ge=0)
    inverse_temperature: float = Field(100.0, gt=0)


def build(config: VQConfig) -> LookupFree:
    """LFQ of `codebook_size` codes. Raises `UsageError` unless that is a power of two."""
    options = checked(LFQOptions, config.quantizer_options, "quantizer_options of 'lfq'")
    if config.codebook_size & (config.codebook_size - 1):
        raise UsageError(f"quantizer 'lfq' needs a codebook_size that is a power of two, got {config.codebook_size}")
    return LookupFree(config, options)


class LookupFree(nn.Module):
    """`LFQ` behind our protocol."""

    def __init__(self, config: VQConfig, options: LFQOptions) -> None:
        super().__init__()
        self.codebook_size = config.codebook_size
        self.options = options
        self.library = LFQ(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            entropy_loss_weight=options.entropy,
            commitment_loss_weight=options.commitment,
        )

    def forward(self, latents: Tensor) -> Quantized:
        quantized, codes, loss = self.library(to_rows(latents)[None], inv_temperature=self.options.inverse_temperature)
        return Quantized(to_grid(quantized[0], latents), codes_to_grid(codes[0].long(), latents), loss)

    @torch.no_grad()
    def encode(self, latents: Tensor) -> Tensor:
        rows = self.library.project_in(to_rows(latents).float())
        return codes_to_grid(((rows > 0).long() * self.library.mask).sum(-1), latents)

    def lookup(self, codes: Tensor) -> Tensor:
        return embed_codes(codes, self.codebook())

    def codebook(self) -> Tensor:
        return self.library.project_out(self.library.codebook)

    def initialize(self, latents: Tensor, weights: Tensor, seed: int) -> None:
        """The codes are fixed."""
