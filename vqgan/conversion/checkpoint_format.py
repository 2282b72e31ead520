"""What a checkpoint format is: recognize a table of tensors, turn it into ours, and ours back into it.

Tables map a parameter name to its tensor. Sizes are read from the shapes; only what shapes can't say (the picture's side) is
given from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from vqgan.config import VQConfig

Tensors: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class CheckpointFormat:
    """recognizes: whether a table is of this format. to_ours: (table, image_size) → our configuration and table, raises
    `ArtefactError` naming what is missing. from_ours: (configuration, our table) → foreign table, raises `UsageError` for a
    tokenizer that the format can't hold. model_config: configuration → the config.json of a folder that transformers opens;
    None where the format is a file alone."""

    recognizes: Callable[[Tensors], bool]
    to_ours: Callable[[Tensors, int], tuple[VQConfig, dict[str, Tensor]]]
    from_ours: Callable[[VQConfig, Tensors], dict[str, Tensor]]
    model_config: Callable[[VQConfig], dict[str, Any]] | None = None
