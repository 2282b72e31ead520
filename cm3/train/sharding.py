"""Sharded training (FSDP2): every process holds a range of rows of every parameter, gradient and optimizer state.

`fully_shard` gathers the parameters of one block at a time for its forward and backward pass. It is applied here and not by
accelerate, which falls back to data-parallel copies on CPUs without a word. The rows of process r of n are the r-th chunk of
`torch.chunk` along the first dimension. Reference: Zhao et al. 2023 (arXiv:2304.11277), torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

Rows: TypeAlias = tuple[int, int]


def shard(module: nn.Module, device: torch.device) -> nn.Module:
    """Shard `module` in place over all processes, one unit for every block (`_no_split_modules`) and one for the rest."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    module.to(device)
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model: modules of the classes that it names in `_no_split_modules` (transformers' convention)."""
    names = {name for part in module.modules() for name in (getattr(part, "_no_split_modules", None) or ())}
    return [part for part in module.modules() if type(part).__name__ in names and part is not module]


@contextmanager
def released(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give back what forward passes of the block have gathered.

    Without a backward pass the outermost unit would stay gathered: with averaged weights, if those were looked at.
    """
    try:
        yield
    finally:
        for module in modules:
            if isinstance(module, FSDPModule):
                module.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only some rows of `tensor`."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`: the same storage, so writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The complete tensor on every process; a collective call for a sharded one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held_rows(tensor: DTensor) -> Rows:
    """The rows [start, stop) of `tensor` that this process holds."""
    size, mesh = tensor.shape[0], tensor.device_mesh
    chunk = -(-size // mesh.size())
    start = min(mesh.get_local_rank() * chunk, size)
    return start, min(start + chunk, size)


def sharded_like(target: DTensor, held: Tensor) -> DTensor:
    """A tensor of `target`'s shape and placement whose rows on this process are `held`."""
    held = held.to(target.device)
    made = DTensor.from_local(
        held, target.device_mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
    )
    return cast(DTensor, made)


def placed_like(target: Tensor, value: Tensor) -> Tensor:
    """The complete `value`, the same on every process, placed as `target` is."""
    return distribute_tensor(value, target.device_mesh, target.placements) if isinstance(target, DTensor) else value
