"""Where things live: modules on their device and wrapped for several processes, batches moved, modes switched and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cm3.train.task import TrainingTask


def place_modules(task: TrainingTask, accelerator: Accelerator, compile_modules: bool) -> dict[str, nn.Module]:
    """Move, compile and wrap the task's modules in place; returns the unwrapped ones, whose state has plain names."""
    plain = dict(task.modules)
    for name, module in plain.items():
        if compile_modules and is_trained(module):
            module.compile()  # in place: state_dict keeps its names
        task.modules[name] = accelerator.prepare(module)
    return plain


def is_trained(module: nn.Module) -> bool:
    """Whether any parameter of the module requires a gradient."""
    return any(parameter.requires_grad for parameter in module.parameters())


@contextmanager
def modes(modules: Mapping[str, nn.Module], training: bool) -> Iterator[None]:
    """Trained modules in training mode (or evaluation mode) for the block; frozen ones always in evaluation mode.

    Afterwards every submodule is in the mode it was in before.
    """
    before = {part: part.training for module in modules.values() for part in module.modules()}
    for module in modules.values():
        module.train(training and is_trained(module))
    try:
        yield
    finally:
        for part, mode in before.items():
            part.training = mode


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it on `device`; walks mappings, lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        moved = {entry.name: to_device(getattr(value, entry.name), device) for entry in fields(value) if entry.init}
        return replace(value, **moved)
    return value
