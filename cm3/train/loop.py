"""The training loop of the project: tokenizer, encoder, pretraining and instruction tuning all run through `train`.

    task (modules, batches, losses) ──► train ──► RUN/checkpoints, RUN/metrics.jsonl, TrainResult

One step: batches of this process → for every named optimizer: forward, backward, look at the numbers, update → average →
log, save, evaluate when due. A run can be stopped, killed or resumed at any step; on a CPU with the same thread count the
result has the same bits as an uninterrupted one, because every random draw of a step is keyed by (seed, step, process).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from cm3.core.errors import Preempted
from cm3.core.progress import Progress, progress
from cm3.train.checkpoints import Checkpoints
from cm3.train.config import TrainConfig
from cm3.train.crashpoints import crash_point, require_known_crash_point
from cm3.train.ema import EMA
from cm3.train.metrics import Meter, Record, RunLog
from cm3.train.nonfinite import nonfinite_error
from cm3.train.optimizers import NamedOptimizer
from cm3.train.placement import modes, place_modules, to_device
from cm3.train.precision import autocast, autocast_dtype
from cm3.train.processes import agreed
from cm3.train.rates import peak_flops, rates
from cm3.train.runlock import run_lock
from cm3.train.schedules import learning_rate_factor
from cm3.train.sharding import released, whole
from cm3.train.signals import StopSignals, stop_signals
from cm3.train.state import RunState, parameter_names, seed_globally
from cm3.train.task import DescribedTask, MeasuredTask, PictureTask, Shard, TrainingTask
from cm3.train.update import Updater


@dataclass(frozen=True)
class TrainResult:
    """What a run gave.

    step: updates made; history: every record of metrics.jsonl, oldest first; seconds: time spent in steps over all restarts;
    ema: module name → parameter name → averaged tensor (for `load_state_dict(..., strict=False)`), None without `ema_decay`.
    The live weights are in the task's modules.
    """

    step: int
    history: list[Record]
    seconds: float
    ema: dict[str, dict[str, Tensor]] | None


def train(task: TrainingTask, config: TrainConfig, run_dir: Path | str, label: str = "train") -> TrainResult:
    """Train `task` as `config` says, in `run_dir`, from its newest checkpoint if it has one; `label` names the progress bar.

    Raises
    ------
    NonFiniteError: a loss or gradient is NaN or infinite; nothing was updated from it, a replay file lies in `run_dir`.
    RunLockedError: another process trains in `run_dir`.
    Preempted, KeyboardInterrupt: SIGTERM, SIGINT came; the step was finished and saved, the same call continues.
    UsageError: the checkpoints were made by another task (other data, losses, sizes); nothing in `run_dir` was changed.
    StorageError: the disk is full or not writable. ArtefactError: the checkpoints are of another model, or all damaged.
    """
    require_known_crash_point()
    run_dir = Path(run_dir)
    accelerator = Accelerator(cpu=config.device == "cpu")
    with ExitStack() as stack:
        agreed(lambda: stack.enter_context(run_lock(run_dir)) if accelerator.is_main_process else None)
        stop = stack.enter_context(stop_signals())
        run = _Run(task, config, run_dir, accelerator, stop)
        stack.callback(run.checkpoints.background.wait)
        log = stack.enter_context(run.log)
        bar = stack.enter_context(progress(config.steps, label, initial=run.state.step, silent=not accelerator.is_main_process))
        stack.enter_context(modes(task.modules, training=True))
        run.evaluate_if_due()
        while run.state.step < config.steps:
            run.one_step(bar)
            run.after_step()
            run.checkpoints.background.raise_failure()
        run.leave_if_stopped()
        return TrainResult(run.state.step, log.history, run.state.seconds, run.averages())


class _Run:
    """A run in progress: the pieces of `train`, wired together and resumed."""

    def __init__(
        self, task: TrainingTask, config: TrainConfig, run_dir: Path, accelerator: Accelerator, stop: StopSignals
    ) -> None:
        self.task, self.config, self.run_dir, self.accelerator, self.stop = task, config, run_dir, accelerator, stop
        self.device, self.dtype = accelerator.device, autocast_dtype(config.precision, accelerator.device)
        modules = place_modules(task, accelerator, config)
        names = parameter_names(modules)
        optimizers = {name: NamedOptimizer(name, groups, config) for name, groups in task.parameter_groups().items()}
        self.main = next(iter(optimizers))
        ema = None
        if config.ema_decay is not None:
            ema = EMA({names[parameter]: parameter for parameter in optimizers[self.main].parameters}, config.ema_decay)
        self.state = RunState(modules, optimizers, ema)
        described = task.settings() if isinstance(task, DescribedTask) else None
        self.checkpoints = Checkpoints(run_dir, config.keep_checkpoints, described)
        agreed(lambda: self.checkpoints.resume(self.state, config, accelerator.num_processes))
        crash_point("resumed", self.state.step)
        self.log = RunLog(run_dir, self.state.step, accelerator.is_main_process, config.tensorboard, config.wandb)
        self.meter = Meter()
        trained = [parameter for parameter in names if parameter.requires_grad]
        self.updater = Updater(task, accelerator, self.dtype, trained, self.meter)
        self._window_started = self.state.seconds
        peak = peak_flops(self.device, config.peak_tflops)
        self._peak = None if peak is None else peak * accelerator.num_processes

    def one_step(self, bar: Progress) -> None:
        """One update of every optimizer."""
        started, step, config = time.perf_counter(), self.state.step, self.config
        seed_globally(self.device, config.seed, "step", step, self.accelerator.process_index)
        batches = self._batches(step)
        crash_point("batch-ready", step)
        factor = learning_rate_factor(config, step)
        shown: dict[str, float] = {}
        updated: list[str] = []
        for name, optimizer in self.state.optimizers.items():
            prefix = "" if name == self.main else f"{name}/"
            optimizer.set_learning_rate(factor)
            measured = self.updater.accumulate(optimizer, list(batches.values()), step, prefix)
            if measured is None:
                continue
            crash_point("gradients-ready", step)
            if not measured.finite:
                raise nonfinite_error(self.run_dir, self.state, optimizer, measured, batches, config.seed, updated)
            self.updater.apply(optimizer, measured, config.clip_norm)
            updated.append(name)
            self.meter.add({"gradient_norm": measured.gradient_norm, "learning_rate": config.learning_rate * factor}, 1.0, prefix)
            shown[f"{prefix}loss"] = measured.loss
        crash_point("updated", step)
        self.state.step += 1
        if self.state.ema is not None:
            self.state.ema.update(self.state.step)
        self.state.seconds += time.perf_counter() - started
        crash_point("step-done", self.state.step)
        bar.advance(1, **shown)

    def after_step(self) -> None:
        """Log, save and evaluate when due, and leave when asked to."""
        step, config = self.state.step, self.config
        last = step == config.steps
        if last or self._stopping() or step % config.log_every == 0:
            self._write_record()
        saved = last or bool(config.checkpoint_every and step % config.checkpoint_every == 0)
        if saved:
            self._save()
        self.evaluate_if_due()
        if self._stopping():
            if not saved:
                self._save()
            self.leave_if_stopped()
        if last:
            crash_point("finished", step)

    def evaluate_if_due(self) -> None:
        """Evaluate unless this step needs none or has its record; also called after resuming, to make up an interrupted one."""
        step, config = self.state.step, self.config
        due = step == config.steps or (step > 0 and config.eval_every and step % config.eval_every == 0)
        if due and not any(record["kind"] == "eval" and record["step"] == step for record in reversed(self.log.history)):
            self._evaluate()

    def averages(self) -> dict[str, dict[str, Tensor]] | None:
        """The averaged weights by module and parameter name."""
        if self.state.ema is None:
            return None
        by_module: dict[str, dict[str, Tensor]] = {name: {} for name in self.state.modules}
        for full_name, tensor in self.state.ema.average.items():
            module, _, name = full_name.partition("/")
            by_module[module][name] = whole(tensor.detach()).clone()
        return {name: tensors for name, tensors in by_module.items() if tensors}

    def _batches(self, step: int) -> Mapping[Shard, Any]:
        """This process's micro-batches of the step, on the device."""
        per_process = self.config.accumulation_steps
        first, count = self.accelerator.process_index * per_process, self.accelerator.num_processes * per_process
        shards = [Shard(index, count) for index in range(first, first + per_process)]
        batches = {shard: self.task.batch(step, shard) for shard in shards}
        if self.device.type == "cpu":
            return batches
        return {shard: to_device(batch, self.device) for shard, batch in batches.items()}

    def _write_record(self) -> None:
        seconds = max(self.state.seconds - self._window_started, 1e-9)
        figures = self.meter.collect(self.accelerator)
        measured = self.task if isinstance(self.task, MeasuredTask) else None
        if (tokens := figures.pop("tokens", None)) is not None:
            figures |= rates(tokens, seconds, measured.flops_per_token() if measured else None, self._peak)
        if measured is not None:
            figures |= measured.position(self.state.step, self.config.accumulation_steps * self.accelerator.num_processes)
        if self.device.type == "cuda":
            figures["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        self._window_started = self.state.seconds
        self.log.write("train", self.state.step, self.state.seconds, figures)
        crash_point("logged", self.state.step)

    def _evaluate(self) -> None:
        averaged = self.state.ema.applied() if self.state.ema is not None else nullcontext()
        seed_globally(self.device, self.config.seed, "evaluate", self.state.step, self.accelerator.process_index)
        frozen = modes(self.task.modules, training=False)
        with averaged, released(self.task.modules.values()), frozen, torch.no_grad(), autocast(self.dtype, self.device):
            outcome = self.stop.interruptible(self._look)
        if outcome is None:
            return
        figures, pictures = outcome
        crash_point("evaluated", self.state.step)
        self.log.write("eval", self.state.step, self.state.seconds, figures)
        self.log.write_pictures(self.state.step, pictures)

    def _look(self) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        return self.task.evaluate(), self.task.pictures() if isinstance(self.task, PictureTask) else {}

    def _save(self) -> None:
        self.checkpoints.save(self.state, self.config, self.accelerator.num_processes)

    def _stopping(self) -> bool:
        """Whether any process was asked to stop."""
        asked = self.stop.received is not None
        if self.accelerator.num_processes == 1:
            return asked
        votes = self.accelerator.reduce(torch.tensor([float(asked)], device=self.device), "sum")
        return bool(votes.item())

    def leave_if_stopped(self) -> None:
        """Raise what the caller of a stopped run gets; the state is saved."""
        if not self._stopping():
            return
        if self.stop.received is signal.SIGINT:
            raise KeyboardInterrupt
        raise Preempted(f"stopped after step {self.state.step} as asked and saved in {self.run_dir}; the same command continues")
