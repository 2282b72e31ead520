"""Where things live: modules on their device and wrapped for several processes, batches moved, modes switched and restored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cm3.core.errors import UsageError
from cm3.train.config import TrainConfig
from cm3.train.sharding import shard
from cm3.train.task import TrainingTask


def place_modules(task: TrainingTask, accelerator: Accelerator, config: TrainConfig) -> dict[str, nn.Module]:
    """Move, checkpoint, compile and wrap (or shard) the task's modules in place; returns those whose state has plain names.

    Raises `UsageError` for activation checkpointing when no module knows how, and for sharding over one process.
    """
    if config.sharding == "full" and accelerator.num_processes == 1:
        raise UsageError(
            "train.sharding=full spreads the model over processes and there is one; start several "
            "(torchrun --nproc-per-node 2 -m cm3.pretrain RUN.toml), or leave train.sharding at none"
        )
    plain = dict(task.modules)
    if config.activation_checkpointing:
        _checkpoint_activations(plain)
    for name, module in plain.items():
        sharded = config.sharding == "full" and is_trained(module)
        if sharded:
            shard(module, accelerator.device)
        if config.compile and is_trained(module):
            module.compile()  # in place: state_dict keeps its names
        if accelerator.num_processes > 1 and not is_trained(module):  # the wrapper refuses modules without gradients
            task.modules[name] = module.to(accelerator.device)
        else:
            task.modules[name] = module if sharded else accelerator.prepare(module)
    return plain


def _checkpoint_activations(modules: Mapping[str, nn.Module]) -> None:
    """Keep only the inputs of every block and compute the rest again in the backward pass (Chen et al., arXiv:1604.06174)."""
    able = [part for module in modules.values() if is_trained(module) for part in module.modules() if _can_checkpoint(part)]
    if not able:
        raise UsageError("train.activation_checkpointing is set, but no module of this run supports it; unset it")
    for part in able:
        new_name = "activation_checkpointing_enable"
        enable: Any = getattr(part, new_name if hasattr(part, new_name) else "gradient_checkpointing_enable")
        enable({"use_reentrant": False})


def _can_checkpoint(part: nn.Module) -> bool:
    """Whether `part` is a transformers model with blocks that can be computed again."""
    return bool(getattr(part, "supports_gradient_checkpointing", False)) and hasattr(part, "gradient_checkpointing_enable")


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
