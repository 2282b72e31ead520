"""Tensor files of other projects, opened without running code from them.

safetensors holds nothing but tensors; PyTorch files go through `torch.load(weights_only=True)`, which refuses everything
that is not tensors and plain containers. What goes wrong is an `ArtefactError` that says what to do.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cm3.core.errors import ArtefactError


class _Ignored(dict[Any, Any]):
    """Stands for what PyTorch Lightning keeps beside the weights: read as an empty container, never as code."""


_IGNORED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Ignored, f"pytorch_lightning.{name}")
    for name in (
        "callbacks.model_checkpoint.ModelCheckpoint",
        "callbacks.pt_callbacks.ModelCheckpoint",
        "callbacks.early_stopping.EarlyStopping",
        "utilities.parsing.AttributeDict",
    )
]


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Name → tensor of a safetensors file. Raises `ArtefactError` when it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ArtefactError(f"{path} is no readable safetensors file: {error}") from None


def load_torch(path: Path, mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU; with `mmap` tensors are read from the file when they are used.

    Names of Lightning classes, which old `.ckpt` files of taming-transformers and LDM hold, are passed over.
    Raises `ArtefactError` when it is damaged or holds more than tensors and plain containers.
    """
    try:
        with torch.serialization.safe_globals(_IGNORED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ArtefactError(
            f"{path} holds more than tensors and is not opened ({_reason(error)}); save its state_dict() alone where you trust it"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # torch's readers raise almost anything on damaged bytes
        raise ArtefactError(
            f"{path} is no readable PyTorch checkpoint ({_reason(error)}); it may be cut off, copy or download it again"
        ) from None


def _reason(error: Exception) -> str:
    """What torch met (a name of code, if it says one), without its advice to open the file with `weights_only` off."""
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it names {named[1][:200]!r}"
    lines = (line.strip() for line in str(error).splitlines() if "weights_only" not in line)
    return next(filter(None, lines), type(error).__name__)[:200]
