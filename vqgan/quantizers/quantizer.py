"""What a quantizer is: the protocol all of them follow, and the record of one quantization.

Shapes: latents and quantized (B, D, h, w) float; codes (B, h, w) int64 in [0, K). D is `codebook_dim`, K `codebook_size`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Quantized:
    """quantized: code vectors with a gradient to the latents; codes; loss: the quantizer's own loss, 0-d; metrics: 0-d each."""

    quantized: Tensor
    codes: Tensor
    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Quantizer(Protocol):
    """Built from a `VQConfig`; an `nn.Module` in every implementation here."""

    codebook_size: int

    def __call__(self, latents: Tensor) -> Quantized:
        """Quantize for training: gradients pass, and statistics move when the module is in training mode."""

    def encode(self, latents: Tensor) -> Tensor:
        """Latents → codes, the fast way; the same codes as in evaluation mode of `__call__`."""

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes → quantized."""

    def codebook(self) -> Tensor:
        """All code vectors (K, D), row i for code i."""

    def initialize(self, latents: Tensor, weights: Tensor, seed: int) -> None:
        """Place the code vectors among latents (N, D) with weights (N,); nothing to do where the codebook is fixed."""


@runtime_checkable
class Annealed(Protocol):
    """A quantizer whose settings move with the training step."""

    def at_step(self, step: int) -> None:
        """Called before every training step, from 0."""


def to_rows(latents: Tensor) -> Tensor:
    """(B, D, h, w) → (B * h * w, D)."""
    return rearrange(latents, "b d h w -> (b h w) d")


def to_grid(rows: Tensor, like: Tensor) -> Tensor:
    """(B * h * w, D) → (B, D, h, w) with B, h, w of `like` (B, _, h, w)."""
    batch, _, height, width = like.shape
    return rearrange(rows, "(b h w) d -> b d h w", b=batch, h=height, w=width)


def codes_to_grid(codes: Tensor, like: Tensor) -> Tensor:
    """(B * h * w,) → (B, h, w) with B, h, w of `like` (B, _, h, w)."""
    return codes.view(like.shape[0], *like.shape[2:])


def embed_codes(codes: Tensor, codebook: Tensor) -> Tensor:
    """Codes (B, h, w) → their vectors (B, D, h, w)."""
    return torch.nn.functional.embedding(codes, codebook).permute(0, 3, 1, 2)
