"""Compute a step that went wrong once more: is it the data and the weights, or was it the machine?

    RUN/nonfinite-step-….json + newest checkpoint before it ──► the steps between, then that one ──► Replayed

Every draw of a step is keyed by (seed, step, process), so on a CPU the same numbers come out to the bit. Nothing is written.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from cm3.core.errors import UsageError
from cm3.core.progress import progress
from cm3.train.checkpoints import checkpoints_of
from cm3.train.config import TrainConfig
from cm3.train.incidents import Incident, batch_digest, read_incident
from cm3.train.placement import modes
from cm3.train.processes import agreed, runs_on_cpu
from cm3.train.runlock import run_lock
from cm3.train.stepping import Stepper
from cm3.train.task import TrainingTask


@dataclass(frozen=True)
class Replayed:
    """A step computed again.

    recorded: what was met then; loss, gradient_norm: what came out now (None: the run stopped before, or that optimizer was not
    reached); same_batches: whether this process's batches are those of then; checkpoint: where it started from, None for the
    beginning of the run.
    """

    recorded: Incident
    loss: float | None
    gradient_norm: float | None
    same_batches: bool
    checkpoint: Path | None

    @property
    def reproduced(self) -> bool:
        """Whether batches, loss and gradient norm are those of then to the last bit."""
        now, then = (str(self.loss), str(self.gradient_norm)), (self.recorded.loss, self.recorded.gradient_norm)
        return self.same_batches and now == then

    def figures(self) -> dict[str, Any]:
        """All of it as JSON values."""
        then = self.recorded
        return {
            "step": then.step,
            "optimizer": then.optimizer,
            "recorded": {"loss": then.loss, "gradient_norm": then.gradient_norm},
            "now": {"loss": str(self.loss), "gradient_norm": str(self.gradient_norm)},
            "same_batches": self.same_batches,
            "reproduced": self.reproduced,
            "checkpoint": self.checkpoint and str(self.checkpoint),
            "parameters_with_bad_gradients": then.parameters_with_bad_gradients,
            "documents": [batch.documents for batch in then.batches],
        }

    def says(self) -> str:
        """The outcome in one line."""
        then = self.recorded
        outcome = "the same again" if self.reproduced else "not the same: look at the machine, the versions or the settings"
        return (
            f"step {then.step}, {then.optimizer!r}: loss {self.loss}, gradient norm {self.gradient_norm} (then {then.loss}, "
            f"{then.gradient_norm}), {'the same' if self.same_batches else 'other'} batches: {outcome}"
        )


def replay(task: TrainingTask, config: TrainConfig, run_dir: Path | str, file: Path | str) -> Replayed:
    """Compute the step that `file` (of `Incident.write`) describes again, with the task and configuration of its run.

    The modules of `task` are left as that step leaves them. Called on every process, as `cm3.train.loop.train` is.

    Raises
    ------
    ArtefactError: `file` is none of these files, or the checkpoints are damaged or of another model.
    UsageError: the run had another seed, another number of micro-batches, or another task.
    RunLockedError: a process trains in `run_dir`.
    """
    run_dir, recorded = Path(run_dir), read_incident(Path(file))
    accelerator = Accelerator(cpu=runs_on_cpu(config.device))
    _require_same_run(recorded, config, accelerator.num_processes)
    with ExitStack() as stack:
        agreed(lambda: stack.enter_context(run_lock(run_dir)) if accelerator.is_main_process else None)
        stepper = Stepper(task, config, accelerator)
        state, checkpoints = stepper.state, checkpoints_of(task, config, run_dir)
        agreed(lambda: checkpoints.resume(state, config, accelerator.num_processes, until=recorded.step))
        path = checkpoints.paths().get(state.step)
        silent = not accelerator.is_main_process
        bar = stack.enter_context(progress(recorded.step + 1, "replay", initial=state.step, silent=silent))
        stack.enter_context(modes(task.modules, training=True))
        while True:
            at, step = state.step, stepper.one_step()
            bar.advance(1)
            if at == recorded.step or (step.incident is not None and step.incident.stops):
                break
        found = step.measured.get(recorded.optimizer) if at == recorded.step else None
        digests = {shard.index: batch_digest(batch) for shard, batch in step.batches.items()}
        same = at == recorded.step and all(digests.get(entry.index) == entry.sha256 for entry in recorded.batches)
        loss, norm = (None, None) if found is None else (found.loss, found.gradient_norm)
        return Replayed(recorded, loss, norm, same, path)


def _require_same_run(recorded: Incident, config: TrainConfig, processes: int) -> None:
    if recorded.seed != config.seed:
        raise UsageError(
            f"the file is of a run with train.seed={recorded.seed}, this one has {config.seed}; give that run's settings"
        )
    micro_batches = recorded.batches[0].count
    if micro_batches != config.accumulation_steps * processes:
        raise UsageError(
            f"the file is of a run with {micro_batches} micro-batches per step (train.accumulation_steps x processes), "
            f"this one has {config.accumulation_steps * processes}; give that run's settings and number of processes"
        )
