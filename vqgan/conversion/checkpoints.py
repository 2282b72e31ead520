"""Reading checkpoint files of other projects without running code from them, and writing tensors back.

safetensors files and folders of them; PyTorch files through `torch.load(weights_only=True)`, which refuses everything
that is not tensors and plain containers.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cm3.core.errors import ArtefactError, InputError

_NESTED = ("state_dict", "model", "ema")  # where Lightning and LlamaGen keep the tensors
_TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


def read_tensors(source: Path) -> dict[str, Tensor]:
    """Name → tensor of a checkpoint file, or of all safetensors files of a folder.

    Raises `InputError` when there is none, `ArtefactError` when it is damaged, no table of tensors, or holds code.
    """
    if source.is_dir():
        files = sorted(source.glob("*.safetensors"))
        if not files:
            raise InputError(f"{source} holds no .safetensors file; name the checkpoint file itself")
        return {name: tensor for file in files for name, tensor in _read_safetensors(file).items()}
    if not source.is_file():
        raise InputError(f"there is no checkpoint at {source}; check the path")
    if source.suffix == ".safetensors":
        return _read_safetensors(source)
    if source.suffix in _TORCH_SUFFIXES:
        return _table(_read_torch(source), source)
    raise InputError(f"{source} is of no known kind; expected .safetensors or {', '.join(_TORCH_SUFFIXES)}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtefactError(f"{path} is no readable safetensors file: {error}") from None


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0][:200]
        raise ArtefactError(
            f"{path} holds more than tensors and is not opened ({reason}); save its state_dict() alone where you trust it"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ArtefactError(f"{path} is no readable PyTorch checkpoint: {str(error).splitlines()[0][:200]}") from None


def _table(value: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    tensors = {str(name): item for name, item in value.items() if isinstance(item, Tensor)} if isinstance(value, Mapping) else {}
    if not tensors:
        raise ArtefactError(f"{path} holds no table of tensors; expected a state_dict")
    return tensors
