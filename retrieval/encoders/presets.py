"""Shapes of CLIP models that can be trained from scratch, by name; every size literal of the encoder stands here.

`tiny` has patches of 16 pixels on 48: few, large patches are what makes it learn within a minute on two CPU cores.
`vit-b-32` is the shape of OpenAI's ViT-B/32, the retriever of CM3Leon (arXiv:2309.02591).
"""

from __future__ import annotations

from types import MappingProxyType

from pydantic import Field, model_validator

from cm3.core.errors import UsageError
from cm3.core.registry import nearest
from cm3.core.runfile import RunConfig


class TowerShape(RunConfig):
    """Width, depth and heads of one transformer tower; the feed-forward layer is four times as wide."""

    hidden_size: int = Field(ge=8)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> TowerShape:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of {self.num_attention_heads} heads")
        return self


class EncoderShape(RunConfig):
    """Everything that decides the network: picture and patch side in pixels, text length, vocabulary, towers, output width."""

    image_size: int = Field(ge=8)
    patch_size: int = Field(ge=2)
    max_text_length: int = Field(ge=4)
    vocab_size: int = Field(ge=300)
    projection_dim: int = Field(ge=8)
    vision: TowerShape
    text: TowerShape

    @model_validator(mode="after")
    def _patches_fit(self) -> EncoderShape:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        return self


def _tower(hidden_size: int, layers: int, heads: int) -> TowerShape:
    return TowerShape(hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=heads)


ENCODER_PRESETS = MappingProxyType(
    {
        "tiny": EncoderShape(
            image_size=48, patch_size=16, max_text_length=64, vocab_size=1024, projection_dim=96,
            vision=_tower(96, 2, 4), text=_tower(96, 2, 4),
        ),
        "small": EncoderShape(
            image_size=96, patch_size=16, max_text_length=77, vocab_size=4096, projection_dim=256,
            vision=_tower(256, 6, 4), text=_tower(256, 4, 4),
        ),
        "vit-b-32": EncoderShape(
            image_size=224, patch_size=32, max_text_length=77, vocab_size=49408, projection_dim=512,
            vision=_tower(768, 12, 12), text=_tower(512, 12, 8),
        ),
    }
)  # fmt: skip


def encoder_shape(name: str) -> EncoderShape:
    """The preset `name`. Raises `UsageError` with the nearest names if there is none."""
    if name not in ENCODER_PRESETS:
        raise UsageError(f"unknown encoder preset {name!r}; {nearest(name, list(ENCODER_PRESETS))}")
    return ENCODER_PRESETS[name]
