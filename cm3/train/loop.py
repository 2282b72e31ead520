"""The training loop of the project: tokenizer, encoder, pretraining and instruction tuning all run through `train`.

    task (modules, batches, losses) ──► train ──► RUN/checkpoints, RUN/metrics.jsonl, TrainResult

One step (`cm3.train.stepping`): batches of this process → for every named optimizer: forward, backward, look at the numbers,
update → average. Then log, save, evaluate when due. A run can be stopped, killed or resumed at any step; on a CPU with the same
thread count the result has the same bits as an uninterrupted one, because every random draw of a step is keyed by (seed, step,
process).
"""

from __future__ import annotations

import signal
import warnings
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
from cm3.train.checkpoints import checkpoints_of
from cm3.train.config import TrainConfig
from cm3.train.crashpoints import crash_point, require_known_crash_point
from cm3.train.metrics import Record, RunLog
from cm3.train.placement import is_trained, modes
from cm3.train.precision import autocast
from cm3.train.processes import agreed, runs_on_cpu
from cm3.train.rates import peak_flops, rates
from cm3.train.runlock import run_lock
from cm3.train.sharding import released, whole
from cm3.train.signals import StopRequested, StopSignals, stop_signals
from cm3.train.state import seed_globally
from cm3.train.stepping import Stepper
from cm3.train.task import MeasuredTask, PictureTask, TrainingTask


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
    LossSpikeError: more loss spikes in a row than are skipped (`config.on_spike`); the rest as before.
    RunLockedError: another process trains in `run_dir`.
    Preempted, KeyboardInterrupt: SIGTERM, SIGINT came; the step was finished and saved, the same call continues.
    UsageError: the checkpoints were made by another task (other data, losses, sizes); nothing in `run_dir` was changed.
    StorageError: the disk is full, not writable, or (before the first step) has no room for a checkpoint.
    ArtefactError: the checkpoints are of another model, or all damaged.
    """
    require_known_crash_point()
    run_dir = Path(run_dir)
    accelerator = Accelerator(cpu=runs_on_cpu(config.device))
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
            run.raise_failed_save()
        run.leave_if_stopped()
        return TrainResult(run.state.step, log.history, run.state.seconds, run.averages())


class _Run:
    """A run in progress: the pieces of `train`, wired together and resumed."""

    def __init__(
        self, task: TrainingTask, config: TrainConfig, run_dir: Path, accelerator: Accelerator, stop: StopSignals
    ) -> None:
        self.task, self.config, self.run_dir, self.accelerator, self.stop = task, config, run_dir, accelerator, stop
        self.stepper = Stepper(task, config, accelerator)
        self.state, self.device, self.dtype = self.stepper.state, self.stepper.device, self.stepper.dtype
        self.checkpoints = checkpoints_of(task, config, run_dir)
        agreed(lambda: self.checkpoints.resume(self.state, config, accelerator.num_processes))
        crash_point("resumed", self.state.step)
        if self.state.step < config.steps:
            agreed(lambda: self.checkpoints.require_room(self.state))
        self.log = RunLog(run_dir, self.state.step, accelerator.is_main_process, config.tensorboard, config.wandb)
        self._window_started = self.state.seconds
        peak = peak_flops(self.device, config.peak_tflops)
        self._peak = None if peak is None else peak * accelerator.num_processes

    def one_step(self, bar: Progress) -> None:
        """One update of every optimizer; an incident is written down and ends the run or is told of."""
        step = self.stepper.one_step()
        if step.incident is not None:
            path = step.incident.write(self.run_dir)
            if step.incident.stops:
                raise step.incident.error(path)
            consequence = "not updated from" if self.config.on_spike == "skip" else "updated from all the same"
            warnings.warn(f"{step.incident.says()}, {consequence}; see {path}", stacklevel=2)
        bar.advance(1, **{f"{self.stepper.prefix(name)}loss": found.loss for name, found in step.measured.items()})

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

    def _write_record(self) -> None:
        seconds = max(self.state.seconds - self._window_started, 1e-9)
        figures = self.stepper.meter.collect(self.accelerator)
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
            alone = self.accelerator.num_processes == 1
            outcome = self.stop.interruptible(self._look) if alone else self._look_together()
        if outcome is None:
            return
        figures, pictures = outcome
        crash_point("evaluated", self.state.step)
        self.log.write("eval", self.state.step, self.state.seconds, figures)
        self.log.write_pictures(self.state.step, pictures)

    def _look(self) -> tuple[Mapping[str, float], Mapping[str, Any]]:
        return self.task.evaluate(), self.task.pictures() if isinstance(self.task, PictureTask) else {}

    def _look_together(self) -> tuple[Mapping[str, float], Mapping[str, Any]] | None:
        """`_look`, which all processes leave before the same forward pass when one of them was asked to stop.

        A process that left alone would be waited for: sharded weights and buffers are exchanged in every forward pass.
        """

        def leave_when_asked(*_: object) -> None:
            if self._stopping():
                raise StopRequested

        trained = [module for module in self.task.modules.values() if is_trained(module)]
        hooks = [module.register_forward_pre_hook(leave_when_asked, prepend=True) for module in trained]
        try:
            return None if self._stopping() else self._look()
        except StopRequested:
            return None
        finally:
            for hook in hooks:
                hook.remove()

    def _save(self) -> None:
        self.checkpoints.save(self.state, self.config, self.accelerator.num_processes)

    def _stopping(self) -> bool:
        """Whether any process was asked to stop."""
        return self._on_any(self.stop.received is not None)

    def _on_any(self, here: bool) -> bool:
        """Whether something is so on any process, given whether it is so here."""
        if self.accelerator.num_processes == 1:
            return here
        votes = self.accelerator.reduce(torch.tensor([float(here)], device=self.device), "sum")
        return bool(votes.item())

    def raise_failed_save(self) -> None:
        """Raise on all processes what a save beside the training has failed with; does not wait for one."""
        if self.config.async_save and self._on_any(self.checkpoints.background.has_failed):
            agreed(self.checkpoints.background.raise_failure)

    def leave_if_stopped(self) -> None:
        """Raise what the caller of a stopped run gets, or what the last save failed with; otherwise the state is saved."""
        agreed(self.checkpoints.background.wait)
        if not self._stopping():
            return
        if self.stop.received is signal.SIGINT:
            raise KeyboardInterrupt
        raise Preempted(f"stopped after step {self.state.step} as asked and saved in {self.run_dir}; the same command continues")
