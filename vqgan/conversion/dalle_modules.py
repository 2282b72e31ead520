"""OpenAI's release files `encoder.pkl` and `decoder.pkl`: whole pickled modules, read as tables of tensors.

torch's restricted unpickler builds a stand-in where the pickle names one of the classes that the two networks are made of, and
refuses every other name: no code of the file, of `dall_e` or of torch's layers runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.serialization import safe_globals

from cm3.core.errors import ArtefactError, InputError
from cm3.core.tensor_files import load_torch

FILES = {"encoder": "encoder.pkl", "decoder": "decoder.pkl"}
_CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)


class _StandIn:
    """A pickled `nn.Module`: what it says of its parameters and parts is kept, the rest forgotten."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.parameters, self.parts = state.get("_parameters", {}), state.get("_modules", {})

    def tensors(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        """The names and tensors of a state dict, behind `prefix`."""
        for name, tensor in self.parameters.items():
            yield f"{prefix}.{name}", tensor.detach()
        for name, part in self.parts.items():
            yield from part.tensors(f"{prefix}.{name}")


def holds_modules(folder: Path) -> bool:
    """Whether `folder` holds one of the release files."""
    return any((folder / file).is_file() for file in FILES.values())


def read_modules(folder: Path) -> dict[str, Tensor]:
    """Name → tensor of both files in `folder`, as `encoder.*` and `decoder.*`.

    Raises `InputError` when one of them is missing, `ArtefactError` when it is damaged or holds anything but such a module.
    """
    tensors: dict[str, Tensor] = {}
    for side, file in FILES.items():
        path = folder / file
        if not path.is_file():
            raise InputError(f"{folder} holds no {file}; put OpenAI's encoder.pkl and decoder.pkl into one folder")
        with safe_globals([(_StandIn, name) for name in _CLASSES]):
            module = load_torch(path)
        try:
            tensors.update(module.tensors(side))
        except (AttributeError, TypeError):  # a module without a state, or one whose parts are something else
            raise ArtefactError(f"{path} holds no pickled {side} of OpenAI's dVAE; take the file of its release") from None
    return tensors
