"""What a network is to the tokenizer: encoder and decoder, and the two maps between their width and the code vectors'.

    pixels (B, 3, Y, X) → encoder → (B, C, h, w) → to_code → (B, D, h, w) → quantizer → from_code → decoder → pixels

The modules are plain single-device networks; the quantizer stands outside of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from cm3.core.errors import InputError


class Decoder(Protocol):
    """A decoder names the weight of its last layer: the adversarial loss is balanced by the gradient there."""

    @property
    def last_weight(self) -> Tensor: ...
    def __call__(self, latents: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Coders:
    """encoder, decoder: see the module text; to_code, from_code: 1×1 maps (identity when the widths agree)."""

    encoder: nn.Module
    decoder: nn.Module
    to_code: nn.Module
    from_code: nn.Module


class NoDecoder(nn.Module):
    """In the place of the decoder that a checkpoint doesn't hold. Raises `InputError` when it is asked for a picture."""

    def forward(self, latents: Tensor) -> Tensor:
        raise InputError(
            "this image tokenizer has no decoder: it turns pictures into codes, not codes into pictures; convert a checkpoint "
            "that holds one (Chameleon's is tokenizer/vqgan.ckpt of its release)"
        )
