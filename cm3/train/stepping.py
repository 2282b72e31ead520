"""One step of a run: its batches, and for every named optimizer forward, backward, a look at the numbers, update.

    task, seed, step ──► Stepper.one_step ──► Step (the measured losses, what went wrong)

It writes no file: the loop writes what it finds, a replay compares it with what was found before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator

from cm3.core.seeding import derive_seed
from cm3.train.config import TrainConfig
from cm3.train.crashpoints import crash_point
from cm3.train.ema import EMA
from cm3.train.incidents import BatchRecord, Incident, all_finite, batch_digest
from cm3.train.metrics import Meter
from cm3.train.optimizers import NamedOptimizer
from cm3.train.placement import place_modules, to_device
from cm3.train.precision import autocast_dtype
from cm3.train.schedules import learning_rate_factor
from cm3.train.sharding import local
from cm3.train.spikes import MOST_IN_A_ROW, SpikeDetector
from cm3.train.state import RunState, parameter_names, seed_globally
from cm3.train.task import NamingTask, Shard, TrainingTask
from cm3.train.update import Measured, Updater

Batches = Mapping[Shard, Any]


@dataclass(frozen=True)
class _Problem:
    """Why an update may do harm; stops: it is not made and the run ends; limit: the loss expected at most."""

    kind: Literal["nonfinite", "spike"]
    stops: bool
    limit: float | None = None


@dataclass(frozen=True)
class Step:
    """What a step gave: measured losses by optimizer, this process's batches, and what went wrong, if anything did.

    An incident that stops the run leaves the step incomplete: the count of steps is as before.
    """

    measured: dict[str, Measured]
    batches: Batches
    incident: Incident | None


class Stepper:
    """The modules of `task` in place, with their optimizers and averages: `state`, which `one_step` moves on."""

    def __init__(self, task: TrainingTask, config: TrainConfig, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator, self.device = task, config, accelerator, accelerator.device
        self.dtype = autocast_dtype(config.precision, self.device)
        modules = place_modules(task, accelerator, config)
        names = parameter_names(modules)
        optimizers = {name: NamedOptimizer(name, groups, config) for name, groups in task.parameter_groups().items()}
        self.main = next(iter(optimizers))
        ema = None
        if config.ema_decay is not None:
            ema = EMA({names[parameter]: parameter for parameter in optimizers[self.main].parameters}, config.ema_decay)
        self.state = RunState(modules, optimizers, ema, SpikeDetector(config.spike_sigma))
        self.meter = Meter()
        trained = [parameter for parameter in names if parameter.requires_grad]
        self._updater = Updater(task, accelerator, self.dtype, trained, self.meter)

    def one_step(self) -> Step:
        """One update of every optimizer; stops before one that would do harm."""
        started, step, config = time.perf_counter(), self.state.step, self.config
        seed_globally(self.device, *self._seed_keys())
        batches = self._batches(step)
        crash_point("batch-ready", step)
        factor = learning_rate_factor(config, step)
        measured: dict[str, Measured] = {}
        updated: list[str] = []
        incident = None
        for name, optimizer in self.state.optimizers.items():
            prefix = self.prefix(name)
            optimizer.set_learning_rate(factor)
            found = self._updater.accumulate(optimizer, list(batches.values()), step, prefix)
            if found is None:
                continue
            crash_point("gradients-ready", step)
            measured[name] = found
            problem = self._problem(name, found)
            if problem is not None and (problem.stops or config.on_spike == "skip" or self.state.spikes.in_a_row == 1):
                incident = self._incident(problem, optimizer, found, batches, updated)
            if problem is not None and problem.stops:
                return Step(measured, batches, incident)
            if problem is None or config.on_spike != "skip":
                self._updater.apply(optimizer, found, config.clip_norm)
                updated.append(name)
            self.meter.add({"gradient_norm": found.gradient_norm, "learning_rate": config.learning_rate * factor}, 1.0, prefix)
        crash_point("updated", step)
        self.state.step += 1
        if self.state.ema is not None:
            self.state.ema.update(self.state.step)
        self.state.seconds += time.perf_counter() - started
        crash_point("step-done", self.state.step)
        return Step(measured, batches, incident)

    def prefix(self, name: str) -> str:
        """What stands before the metrics of optimizer `name`: nothing for the main one."""
        return "" if name == self.main else f"{name}/"

    def _problem(self, name: str, found: Measured) -> _Problem | None:
        """What speaks against the update."""
        if not found.finite:
            return _Problem("nonfinite", stops=True)
        if name != self.main or self.config.on_spike == "ignore":
            return None
        spikes = self.state.spikes
        limit = spikes.exceeded(found.loss)
        stops = self.config.on_spike == "skip" and spikes.in_a_row > MOST_IN_A_ROW
        return None if limit is None else _Problem("spike", stops, limit)

    def _incident(
        self, problem: _Problem, optimizer: NamedOptimizer, found: Measured, batches: Batches, updated: list[str]
    ) -> Incident:
        gradients = ((self.state.names[p], local(p.grad)) for p in optimizer.parameters if p.grad is not None)
        step, task = self.state.step, self.task
        return Incident(
            kind=problem.kind,
            step=step,
            seed=self.config.seed,
            generator_seed=derive_seed(*self._seed_keys()),
            optimizer=optimizer.name,
            updated_before=updated,
            loss=str(found.loss),
            gradient_norm=str(found.gradient_norm),
            limit=problem.limit,
            stops=problem.stops,
            parameters_with_bad_gradients=[name for name, gradient in gradients if not torch.isfinite(gradient).all()],
            batches=[
                BatchRecord(
                    index=shard.index,
                    count=shard.count,
                    sha256=batch_digest(batch),
                    finite=all_finite(batch),
                    documents=task.document_names(step, shard) if isinstance(task, NamingTask) else None,
                )
                for shard, batch in batches.items()
            ],
        )

    def _seed_keys(self) -> tuple[int | str, ...]:
        """What the draws of the step at hand are a function of."""
        return (self.config.seed, "step", self.state.step, self.accelerator.process_index)

    def _batches(self, step: int) -> Batches:
        """This process's micro-batches of the step, on the device."""
        per_process = self.config.accumulation_steps
        first, count = self.accelerator.process_index * per_process, self.accelerator.num_processes * per_process
        shards = [Shard(index, count) for index in range(first, first + per_process)]
        batches = {shard: self.task.batch(step, shard) for shard in shards}
        if self.device.type == "cpu":
            return batches
        return {shard: to_device(batch, self.device) for shard, batch in batches.items()}
