"""The estimate of a run whose step nobody wrote down as arithmetic: its losses on one example, watched.

    task, one example ──► Trial (what the forward pass keeps for the gradient, its operations) ──► RunEstimate

A micro-batch keeps as many times as much as it has examples; a backward pass costs twice its forward pass. Afterwards the task is
as before: buffers and random states are put back, and nothing was updated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from cm3.core.available_memory import available_memory
from cm3.train.config import TrainConfig
from cm3.train.estimate import USABLE_SHARE, RunEstimate, bytes_per_number, expected_seconds, state_bytes, training_device
from cm3.train.placement import modes
from cm3.train.task import Shard, TrainingTask


@dataclass(frozen=True)
class Trial:
    """Of one example: `kept_bytes` in fp32 until its gradients are known, and the `flops` of all optimizers' passes."""

    kept_bytes: int
    flops: float


def try_example(task: TrainingTask, batch_size: int, step: int) -> Trial:
    """The losses of `task` at `step` on the first of the `batch_size` examples of its first batch, on the CPU in fp32."""
    batch = task.batch(0, Shard(0, batch_size))
    weights = {parameter.untyped_storage().data_ptr() for module in task.modules.values() for parameter in module.parameters()}
    kept, flops = 0, 0.0
    with torch.random.fork_rng(devices=[]), _untouched(task.modules), modes(task.modules, training=True):
        for name in task.parameter_groups():
            bytes_of: dict[int, int] = {}

            def keep(tensor: Tensor, bytes_of: dict[int, int] = bytes_of) -> Tensor:
                storage = tensor.untyped_storage()  # views of one are kept once
                if storage.data_ptr() not in weights and not isinstance(tensor, nn.Parameter):  # of a judge that is no module
                    bytes_of[storage.data_ptr()] = storage.nbytes()
                return tensor.detach()  # a result that held itself would stay for the garbage collector

            with saved_tensors_hooks(keep, lambda tensor: tensor), FlopCounterMode(display=False) as counter:
                task.loss(name, batch, step)
            kept, flops = max(kept, sum(bytes_of.values())), flops + 3.0 * counter.get_total_flops()
    return Trial(kept, flops)


@dataclass(frozen=True)
class Examples:
    """What an update sees: `count` examples over all processes and micro-batches, their `unit` in the plural.

    at_once: those whose activations are there together, where these are fewer than a micro-batch. pair_bytes: kept for every
    pair of an example here and one of the same micro-batch on any process. step: one at which every loss is on.
    """

    count: int
    unit: str
    at_once: int | None = None
    pair_bytes: int = 0
    step: int = 0


def estimate_by_trial(task: TrainingTask, config: TrainConfig, examples: Examples, remedy: Callable[[int], str]) -> RunEstimate:
    """The estimate for a run of `task`; `remedy` says what to change, from the number of examples that fit at a time."""
    processes, device = int(os.environ.get("WORLD_SIZE", "1")), training_device(config)
    trial = try_example(task, examples.count, examples.step)
    each = trial.kept_bytes * bytes_per_number(config, device) // 4
    here = max(1, examples.count // (processes * config.accumulation_steps))
    between = _state(task, config, processes)
    pairs = examples.pair_bytes * here * here * processes
    available = available_memory(device)
    seen = examples.count * config.steps
    return RunEstimate(
        parameters=sum(parameter.numel() for module in task.modules.values() for parameter in module.parameters()),
        state_bytes=between,
        step_bytes=each * min(here, examples.at_once or here) + pairs,
        available_bytes=available,
        examples=seen,
        unit=examples.unit,
        flops=trial.flops * seen,
        seconds=expected_seconds(trial.flops * seen / processes, config, device),
        remedy=lambda: remedy(int(max(0, USABLE_SHARE * available - between - pairs) // max(1, each))),
    )


def _state(task: TrainingTask, config: TrainConfig, processes: int) -> int:
    weights = sum(tensor.numel() for module in task.modules.values() for tensor in module.state_dict().values())
    counted = [
        (name, bool(group.get("hidden")), sum(parameter.numel() for parameter in group["params"]))
        for name, groups in task.parameter_groups().items()
        for group in groups
    ]
    main = counted[0][0]
    trained = sum(count for _, _, count in counted)
    hidden = sum(count for _, is_hidden, count in counted if is_hidden)
    averaged = sum(count for name, _, count in counted if name == main)
    return state_bytes(config, processes, weights, trained, hidden, averaged, whole=weights)


@contextmanager
def _untouched(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put the modules' buffers (running statistics, moving averages) back after the block."""
    buffers = [(buffer, buffer.clone()) for module in modules.values() for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
