"""Tensor files of other projects, opened without running code from them.

safetensors holds nothing but tensors; PyTorch files go through `torch.load(weights_only=True)`, which refuses everything
that is not tensors and plain containers. What goes wrong is an `ArtefactError` that says what to do.
"""

from __future__ import annotations

import pickle
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
        cause = str(error).partition("WeightsUnpickler error: ")[2] or str(error)  # the rest is advice to trust the file
        reason = cause.strip().splitlines()[0].partition(" was not an allowed global")[0][:200]
        raise ArtefactError(
            f"{path} holds more than tensors and is not opened ({reason}); save its state_dict() alone where you trust it"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ArtefactError(f"{path} is no readable PyTorch checkpoint: {str(error).splitlines()[0][:200]}") from None
