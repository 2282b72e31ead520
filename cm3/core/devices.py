"""Names of devices, checked before anything is loaded onto them."""

from __future__ import annotations

import torch

from cm3.core.errors import UsageError


def require_device(name: str) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1" …). Raises `UsageError` for one that torch does not find here."""
    try:
        reached = torch.zeros(1, device=name)
        reached.cpu()
    except (RuntimeError, AssertionError):  # whichever, by the kind of device and the build of torch
        raise UsageError(f"there is no device {name!r} here; take cpu, or a GPU that this machine and its torch have") from None
    return reached.device
