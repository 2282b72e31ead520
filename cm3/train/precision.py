"""Numeric precision of a run: which dtype autocast uses, and the context that applies it.

Weights, gradients and optimizer states stay fp32; bf16 is autocast around the loss and the evaluation.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of autocast, or None for plain fp32. "auto" is bf16 on a GPU; CPUs without AMX run bf16 far slower than fp32."""
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else None
    return torch.bfloat16 if precision == "bf16" else None


def autocast(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[object]:
    """`torch.autocast` in `dtype`, or nothing when it is None."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
