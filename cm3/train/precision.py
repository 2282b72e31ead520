"""Numeric precision of a run: which dtype autocast uses, and the context that applies it.

Weights, gradients and optimizer states stay fp32; bf16 is autocast around the loss and the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, or None for plain fp32.

    "auto" is bf16 where the device multiplies it natively: on a GPU, and on a CPU with matrix tiles (AMX), where it is about
    four times as fast as fp32. Other CPUs emulate it, up to a hundred times slower than fp32.
    """
    native = device.type == "cuda" or (device.type == "cpu" and cpu_has_bf16_tiles())
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and native) else None


def cpu_has_bf16_tiles() -> bool:
    """Whether this CPU has AMX for bf16; False with a torch that cannot tell."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16", False))


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """`torch.autocast` in `dtype`, or nothing when it is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
