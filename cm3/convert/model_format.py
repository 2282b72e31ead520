"""What a model format is: recognize a folder, open it as tensors in our names, and write ours into such a folder.

Tensors come one at a time and only when asked for, so a conversion never holds a whole model. The image tokenizer travels as
a table in the names of taming-transformers, which all of these formats share; `cm3.model_conversion` makes ours of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cm3.model import CM3Config
from cm3.tokens import DocumentTokenizer


@dataclass(frozen=True)
class ImageSizes:
    """Sizes of a VQGAN. resolution: pixels on a side; attention_resolutions: sides at which its blocks attend."""

    resolution: int
    codebook_size: int
    codebook_dim: int
    channels: int
    channel_multipliers: tuple[int, ...]
    residual_blocks: int
    latent_channels: int
    attention_resolutions: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImageWeights:
    """A VQGAN on its way: `tensors` in taming's names (`encoder.*`, `quantize.embedding.weight` …) and its sizes."""

    tensors: Mapping[str, Tensor]
    sizes: ImageSizes


@dataclass(frozen=True)
class OpenedModel:
    """A model that is not in memory.

    config: of the `CM3ForCausalLM`; tensors: our parameter name → tensor, read (and merged, permuted) when looked up;
    tokenizer: vocabulary and text tokenizer; image_weights: gives the VQGAN's table in taming's names, or the checkpoint file
    that holds it (None: the source has none); image_resolution: pixels on a side of its pictures.
    """

    config: CM3Config
    tensors: Mapping[str, Tensor]
    tokenizer: DocumentTokenizer
    image_weights: Callable[[], Mapping[str, Tensor]] | Path | None
    image_resolution: int


@dataclass(frozen=True)
class ModelFormat:
    """recognizes: whether a folder is of this format; looks at names and small files only.
    open: folder → `OpenedModel`; raises `ArtefactError` naming what is missing or does not fit.
    write: (opened model of ours, its image tokenizer, folder to fill, number of model-parallel shards); raises `UsageError`
    for a model that the format cannot hold."""

    recognizes: Callable[[Path], bool]
    open: Callable[[Path], OpenedModel]
    write: Callable[[OpenedModel, ImageWeights, Path, int], None]
