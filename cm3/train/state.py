"""The state of a run as named tensors: what a checkpoint holds, and how it goes back.

Three tables of tensors (weights and buffers, optimizer states, averages) plus the step count. The schedule is a pure
function of the step, batches are pure functions of (seed, step, shard), and the global random generators are seeded anew
from (seed, step, process) in every step (`seed_globally`); so there is nothing else to save.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cm3.core.errors import ArtefactError, UsageError
from cm3.core.seeding import derive_seed
from cm3.train.ema import EMA
from cm3.train.optimizers import NamedOptimizer

Tensors = dict[str, Tensor]


@dataclass
class RunState:
    """A run between two steps.

    modules: name → unwrapped module; optimizers: name → optimizer, in the task's order; ema: averages of the first
    optimizer's parameters, or None; step: updates made; seconds: time spent in steps, over all restarts.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, NamedOptimizer]
    ema: EMA | None = None
    step: int = 0
    seconds: float = 0.0
    names: dict[Tensor, str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = parameter_names(self.modules)
        for optimizer in self.optimizers.values():
            if any(parameter not in self.names for parameter in optimizer.parameters):
                raise UsageError(f"optimizer {optimizer.name!r} updates a parameter of no module in task.modules; add its module")

    def module_tensors(self, name: str) -> Tensors:
        """Parameters and persistent buffers of one module."""
        return dict(self.modules[name].state_dict())

    def optimizer_tensors(self, name: str) -> Tensors:
        """Optimizer state as "module/parameter/key" → tensor."""
        state = self.optimizers[name].state()
        return {f"{self.names[parameter]}/{key}": value for parameter, entry in state.items() for key, value in entry.items()}

    def write_modules(self, folder: Path) -> None:
        """Write `module-NAME.safetensors` for every module."""
        for name in self.modules:
            write_tensors(folder / f"module-{name}.safetensors", self.module_tensors(name))

    def write_optimizers(self, folder: Path) -> None:
        """Write `optimizer-NAME.safetensors` for every optimizer, and `ema.safetensors` if there are averages."""
        for name in self.optimizers:
            write_tensors(folder / f"optimizer-{name}.safetensors", self.optimizer_tensors(name))
        if self.ema is not None:
            write_tensors(folder / "ema.safetensors", self.ema.average)

    def read(self, folder: Path) -> None:
        """Restore everything from a checkpoint folder. Raises `ArtefactError` when it was written by another model."""
        try:
            for name, module in self.modules.items():
                module.load_state_dict(read_tensors(folder / f"module-{name}.safetensors"))
            for name in self.optimizers:
                self._load_optimizer(name, read_tensors(folder / f"optimizer-{name}.safetensors"))
            if self.ema is not None:
                self.ema.load(read_tensors(folder / "ema.safetensors"))
        except (FileNotFoundError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ArtefactError(
                f"{folder} does not fit this run: {reason}; use the configuration it was made with, or another run folder"
            ) from error

    def _load_optimizer(self, name: str, tensors: Tensors) -> None:
        parameters = {full_name: parameter for parameter, full_name in self.names.items()}
        state: dict[Tensor, Tensors] = {}
        for key, value in tensors.items():
            full_name, _, entry = key.rpartition("/")
            parameter = parameters[full_name]
            state.setdefault(parameter, {})[entry] = laid_out_like(parameter, value)
        self.optimizers[name].load_state(state)


def parameter_names(modules: Mapping[str, nn.Module]) -> dict[Tensor, str]:
    """Parameter → "module/dotted.name"; a parameter that two places share has the first name."""
    names: dict[Tensor, str] = {}
    for module_name, module in modules.items():
        for name, parameter in module.named_parameters():
            names.setdefault(parameter, f"{module_name}/{name}")
    return names


def laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` on the parameter's device and, if it has the same shape, with the same strides (files are always contiguous)."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors; tensors that are one and the same (tied weights) are written once, the other names kept as aliases."""
    first: dict[tuple[object, ...], str] = {}
    unique: Tensors = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and (owner := first.setdefault(identity, name)) != name:
            aliases[name] = owner
        else:
            unique[name] = _alone(tensor)
    save_file(unique, path, metadata=aliases or None)


def read_tensors(path: Path) -> Tensors:
    """Read what `write_tensors` wrote."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as stream:
        aliases = stream.metadata() or {}
    return tensors | {name: tensors[owner] for name, owner in aliases.items()}


def _alone(tensor: Tensor) -> Tensor:
    """The tensor contiguous, on the CPU and the only one on its storage, as safetensors requires; copied only if it must be."""
    tensor = tensor.cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()


def seed_globally(device: torch.device, *keys: int | str) -> None:
    """Seed the global generators of torch, NumPy and Python from `keys`.

    Dropout and third-party layers draw from them. Seeding per step makes a step independent of everything before it.
    `torch.manual_seed` would do the same in 0.2 ms, asking every back end; this takes 0.03 ms.
    """
    seed = derive_seed(*keys)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- the global one is the point
    random.seed(seed)
