"""Reading checkpoint files of other projects without running code from them, and writing tensors back.

safetensors files and folders of them; PyTorch files through `torch.load(weights_only=True)`, which refuses everything
that is not tensors and plain containers; the two files of OpenAI's dVAE by `vqgan.conversion.dalle_modules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cm3.core.errors import ArtefactError, InputError
from cm3.core.tensor_files import load_safetensors, load_torch
from vqgan.conversion.dalle_modules import FILES, holds_modules, read_modules

_NESTED = ("state_dict", "model", "ema")  # where Lightning and LlamaGen keep the tensors
_TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")


def read_tensors(source: Path) -> dict[str, Tensor]:
    """Name → tensor of a checkpoint file, or of all safetensors files of a folder, or of the dVAE's two files in it.

    Raises `InputError` when there is none, `ArtefactError` when it is damaged, no table of tensors, or holds code.
    """
    if source.is_dir() and holds_modules(source):
        return read_modules(source)
    if source.is_dir():
        files = sorted(source.glob("*.safetensors"))
        if not files:
            raise InputError(f"{source} holds no .safetensors file; name the checkpoint file itself")
        return {name: tensor for file in files for name, tensor in load_safetensors(file).items()}
    if not source.is_file():
        raise InputError(f"there is no checkpoint at {source}; check the path")
    if source.suffix == ".safetensors":
        return load_safetensors(source)
    if source.suffix in _TORCH_SUFFIXES:
        return _table(load_torch(source), source)
    if source.name in FILES.values():
        raise InputError(f"{source} is half of a tokenizer; name the folder that holds {' and '.join(FILES.values())}")
    raise InputError(f"{source} is of no known kind; expected .safetensors or {', '.join(_TORCH_SUFFIXES)}")


def _table(value: Any, path: Path) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    tensors = {str(name): item for name, item in value.items() if isinstance(item, Tensor)} if isinstance(value, Mapping) else {}
    if not tensors:
        raise ArtefactError(f"{path} holds no table of tensors; expected a state_dict")
    return tensors
