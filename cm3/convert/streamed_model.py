"""`StreamedModel`: a model on its way from one folder to another that can be saved like one in memory.

It has what `assemble_model_folder` asks of a model, `config` and `save_pretrained`, and checks every tensor against the
shapes that the configuration demands before it is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig

from cm3.convert.tensor_tables import SHARD_BYTES, write_sharded
from cm3.core.errors import ArtefactError
from cm3.core.progress import progress
from cm3.model import CM3Config, CM3ForCausalLM


class StreamedModel:
    """A configuration and a lazy table in our names. Raises `ArtefactError` naming tensors that are missing or too many.

    source: what messages call the table; shard_bytes: most bytes per written file, which is also what is held in memory.
    """

    def __init__(self, config: CM3Config, tensors: Mapping[str, Tensor], source: str, shard_bytes: int = SHARD_BYTES) -> None:
        self.config, self._tensors, self._source, self._shard_bytes = config, tensors, source, shard_bytes
        self._shapes = expected_shapes(config)
        missing = [f"{name} is missing" for name in self._shapes if name not in tensors]
        surplus = [f"{name} is not expected" for name in tensors if name not in self._shapes]
        if problems := missing + surplus:
            raise ArtefactError(
                f"{source} does not fit its configuration ({len(problems)} differences): {'; '.join(problems[:5])}; "
                "check that all files are there and belong together"
            )

    def save_pretrained(self, folder: Path) -> None:
        """Write configuration and weights in the layout of transformers, in the dtype of the source, shard by shard.

        Raises `ArtefactError` for a tensor of another shape or with values that are not finite.
        """
        dtypes: set[torch.dtype] = set()
        with progress(len(self._shapes), "converting", unit="tensor") as bar:
            write_sharded(self._checked(bar.advance, dtypes), Path(folder), self._shard_bytes)
        config = copy.deepcopy(self.config)
        config.architectures = [CM3ForCausalLM.__name__]
        config.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        config.save_pretrained(folder)
        GenerationConfig.from_model_config(config).save_pretrained(folder)

    def _checked(self, advance: Callable[[int], None], dtypes: set[torch.dtype]) -> Iterator[tuple[str, Tensor]]:
        for name, shape in self._shapes.items():
            tensor = self._tensors[name]
            if tuple(tensor.shape) != shape:
                raise ArtefactError(
                    f"{self._source}: {name} is {tuple(tensor.shape)}, expected {shape}; "
                    "weights and configuration do not belong together"
                )
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise ArtefactError(
                    f"{self._source}: {name} holds values that are not finite numbers; these weights can't be used"
                )
            dtypes.add(tensor.dtype)
            advance(1)
            yield name, tensor


def expected_shapes(config: CM3Config) -> dict[str, tuple[int, ...]]:
    """Parameter name → shape of a `CM3ForCausalLM` of this configuration, tied weights once; nothing is allocated."""
    with torch.device("meta"):
        model = CM3ForCausalLM(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
