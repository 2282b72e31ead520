"""Checkpoints of a run: `RUN/checkpoints/step-00000100/`, each an artefact folder (atomic, hashed), and which of them to keep.

A folder holds the tensors of `RunState` as safetensors and a `state.json` (step, seconds, configuration, settings of the task,
torch version, thread and process count). No pickle. The newest one that verifies wins; a damaged one is named, skipped and left
in place. Sharded runs write one file per process and table; any number of processes reads them (`cm3.train.tensor_files`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cm3.core.artefact import MANIFEST, read_json, storage_errors, sweep, verify, write_json, writing
from cm3.core.errors import ArtefactError, StorageError, UsageError
from cm3.core.temporaries import temporary
from cm3.train.background import BackgroundWriter
from cm3.train.config import TrainConfig
from cm3.train.crashpoints import crash_point
from cm3.train.estimate import training_device
from cm3.train.precision import autocast_dtype
from cm3.train.processes import agreed, is_main_process, process_count
from cm3.train.sharding import is_sharded, local
from cm3.train.state import RunState, Tensors
from cm3.train.task import DescribedTask, TrainingTask
from cm3.train.tensor_files import Part, write_tensors

KIND = "checkpoint"
_LONGEST_SHOWN = 80  # characters of a setting in a message
_NAME = re.compile(r"step-(\d{8,})")
_HABITS = {"checkpoint_every", "keep_checkpoints", "eval_every", "log_every", "tensorboard", "wandb", "async_save", "peak_tflops"}


@dataclass(frozen=True)
class Snapshot:
    """What one checkpoint will hold: the step, tables of tensors (file stem → name → tensor), and the text of state.json."""

    step: int
    tables: dict[str, Tensors]
    description: dict[str, Any]


class Checkpoints:
    """The checkpoints below `run_dir`; `keep` is how many of the newest survive a save.

    task: what the task says of itself (`cm3.train.task.DescribedTask`), empty for one that says nothing.
    """

    def __init__(self, run_dir: Path, keep: int, task: Mapping[str, Any] | None = None) -> None:
        self.task = json.loads(json.dumps(dict(task or {})))
        self.folder = run_dir / "checkpoints"
        self.keep = keep
        self.background = BackgroundWriter()

    def paths(self) -> dict[int, Path]:
        """Step → folder, oldest first; nothing is verified."""
        found = {int(match[1]): path for path in self.folder.glob("step-*") if (match := _NAME.fullmatch(path.name))}
        return dict(sorted(found.items()))

    def save(self, state: RunState, config: TrainConfig, processes: int) -> None:
        """Write the checkpoint of `state.step`, then remove those that `keep` no longer covers. Called on every process.

        With `config.async_save` a copy is written while training goes on; the call first waits for the one before. Raises
        `StorageError` when it does not fit on the disk; what stood before then still stands.
        """
        snapshot = Snapshot(state.step, state.tables(), self._describe(state, config, processes))
        if config.sharding == "full" and process_count() > 1:
            self._write_together(snapshot)
        elif config.async_save:
            agreed(self.background.wait)
            if is_main_process():
                copied = Snapshot(snapshot.step, _copied(snapshot.tables), snapshot.description)
                self.background.start(lambda: self._write(copied))
        else:
            agreed(lambda: self._write(snapshot) if is_main_process() else None)

    def _write(self, snapshot: Snapshot) -> None:
        """Write `snapshot` alone."""
        path = self._place(snapshot)
        with writing(path, kind=KIND, provenance={"step": snapshot.step}) as folder:
            crash_point("save-started", snapshot.step)
            _write_tables(snapshot, folder, Part())
            write_json(folder / "state.json", snapshot.description)
            crash_point("state-written", snapshot.step)
        crash_point("save-done", snapshot.step)
        self._retire(snapshot.step)
        crash_point("retained", snapshot.step)

    def _write_together(self, snapshot: Snapshot) -> None:
        """Write `snapshot` with all processes, each its own rows; all of them fail when one does."""
        main = is_main_process()
        with ExitStack() as stack:

            def begin() -> Path | None:
                place = self._place(snapshot)
                return stack.enter_context(writing(place, KIND, {"step": snapshot.step})) if main else None

            folder = Path(agreed(begin))
            crash_point("save-started", snapshot.step)
            part = Part(torch.distributed.get_rank(), torch.distributed.get_world_size())
            agreed(lambda: _write_tables(snapshot, folder, part))
            agreed(lambda: write_json(folder / "state.json", snapshot.description) if main else None)
            crash_point("state-written", snapshot.step)
            agreed(stack.close)
        crash_point("save-done", snapshot.step)
        agreed(lambda: self._retire(snapshot.step) if main else None)
        crash_point("retained", snapshot.step)

    def _place(self, snapshot: Snapshot) -> Path:
        """Where it goes, once there is room for it."""
        path = self.folder / f"step-{snapshot.step:08d}"
        if is_main_process():
            with storage_errors(path):
                self.folder.mkdir(parents=True, exist_ok=True)
            if path.is_dir() and not (path / MANIFEST).is_file():  # a damaged one, or `writing` would not take its place
                shutil.rmtree(path, ignore_errors=True)
            _require_space(path, _held_bytes(snapshot.tables) * _holders(snapshot.tables))
        return path

    def require_room(self, state: RunState) -> None:
        """Raise `StorageError` when the next checkpoint cannot fit: before the first step, with the optimizer states to come."""
        if is_main_process():
            tables = {stem: tensors for stem, tensors in state.tables().items() if not stem.startswith("optimizer-")}
            to_come = sum(optimizer.state_bytes() for optimizer in state.optimizers.values())
            _require_space(self.folder, (_held_bytes(tables) + to_come) * _holders(tables))

    def resume(self, state: RunState, config: TrainConfig, processes: int, until: int | None = None) -> Path | None:
        """Restore `state` from the newest checkpoint that verifies; returns its path, or None when there is none at all.

        Those of steps after `until` are passed over.
        Warns about damaged ones and about settings that differ. Raises `UsageError` when it was made by another task (other
        data, losses, sizes, rows of a step) or with another seed, `ArtefactError` when all of them are damaged or the valid one
        is of another model.
        """
        sweep(self.folder)
        damaged = []
        for step, path in reversed(self.paths().items()):
            if until is not None and step > until:
                continue
            try:
                verify(path, kind=KIND)
            except ArtefactError as error:
                damaged.append(str(error))
                continue
            saved, now = read_json(path / "state.json"), self._describe(state, config, processes)
            for problem in damaged:
                warnings.warn(f"skipped a damaged checkpoint, continuing from {path.name}: {problem}", stacklevel=2)
            _require_same_task(path, saved.get("task", {}) | _drawn_from(saved["config"]), self.task | _drawn_from(now["config"]))
            state.read(path)
            _warn_differences(path, saved, now)
            state.step, state.seconds = int(saved["step"]), float(saved["seconds"])
            state.spikes.load(saved.get("spikes", {}))
            return path
        if damaged:
            raise ArtefactError(f"no checkpoint in {self.folder} is intact; remove that folder to start anew ({damaged[0]})")
        return None

    def _describe(self, state: RunState, config: TrainConfig, processes: int) -> dict[str, Any]:
        return {
            "step": state.step,
            "seconds": state.seconds,
            "spikes": state.spikes.record(),
            "config": config.model_dump(mode="json"),
            "task": self.task,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processes": processes,
            "arithmetic": _arithmetic(config),
        }

    def _retire(self, step: int) -> None:
        """Remove the oldest checkpoints up to `step`, the one just written; later ones (of a damaged future) are left alone."""
        past = [path for number, path in self.paths().items() if number <= step]
        for path in past[: -self.keep]:
            aside = temporary(path)
            with storage_errors(path):
                os.rename(path, aside)  # so that a half-removed folder is never taken for a damaged checkpoint
            crash_point("retire-renamed", step)
            shutil.rmtree(aside, ignore_errors=True)


def checkpoints_of(task: TrainingTask, config: TrainConfig, run_dir: Path) -> Checkpoints:
    """The checkpoints of a run of `task` in `run_dir`."""
    described = task.settings() if isinstance(task, DescribedTask) else None
    return Checkpoints(run_dir, config.keep_checkpoints, described)


def _drawn_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """The one setting of the loop that decides which data comes when."""
    return {"train.seed": config["seed"]}


def _require_same_task(path: Path, saved: Any, now: Any) -> None:
    """Going on with other data or another loss would mix two runs, or call the old result the new one."""
    for name, old, new in _differences(saved, now):
        raise UsageError(
            f"{path} was made with {name}={_shown(old)}, this run has {_shown(new)}; "
            "restore that setting to go on, or choose another run folder (another out)"
        )


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted names of what differs with both values; a key that one side lacks (an older version) is passed over."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in new:
            if key in old:
                yield from _differences(old[key], new[key], f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new)):
            yield from _differences(before, after, f"{name}.{index}")
    elif old != new:
        yield name, old, new


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def _warn_differences(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Results differ in the last bits with another torch or thread count, and altogether with other settings: say so."""
    settings = set(now["config"]) & set(saved["config"])  # what an older version did not know had no effect
    changed = {f"config.{key}": (saved["config"].get(key), now["config"].get(key)) for key in settings - _HABITS}
    changed |= {key: (saved[key], now[key]) for key in ("torch", "threads", "processes", "arithmetic") if key in saved}
    differences = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in sorted(changed.items()) if old != new)
    if differences:
        warnings.warn(f"continuing {path.name} is not bit-identical to an uninterrupted run: {differences}", stacklevel=3)


def _arithmetic(config: TrainConfig) -> str:
    """Where products are computed and in what: "auto" is another thing on another machine."""
    device = training_device(config)
    dtype = autocast_dtype(config.precision, device) or torch.float32
    return f"{device.type} {str(dtype).removeprefix('torch.')}"


def _write_tables(snapshot: Snapshot, folder: Path, part: Part) -> None:
    for stem, tensors in snapshot.tables.items():
        if stem.startswith("optimizer-"):
            crash_point("modules-written", snapshot.step)
        write_tensors(part.path(folder, stem), tensors, first=part.index == 0)
    crash_point("optimizers-written", snapshot.step)


def _copied(tables: dict[str, Tensors]) -> dict[str, Tensors]:
    """A copy on the CPU that training does not touch; tensors that are one and the same stay so."""
    copies: dict[tuple[object, ...], torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (id(tensor),)
        if identity not in copies:
            copies[identity] = tensor.detach().to("cpu", copy=True)
        return copies[identity]

    return {stem: {name: copy(tensor) for name, tensor in tensors.items()} for stem, tensors in tables.items()}


def _require_space(path: Path, need: int) -> None:
    """Refuse before writing when `need` bytes cannot fit: libraries report a full disk late and misleadingly."""
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise StorageError(f"no space to write {path}: it needs {need:,} bytes, {free:,} are free; free some, or write elsewhere")


def _held_bytes(tables: Mapping[str, Tensors]) -> int:
    """What this process holds of the tables."""
    held = [local(tensor) for tensors in tables.values() for tensor in tensors.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _holders(tables: dict[str, Tensors]) -> int:
    """How many processes hold a part of the tables."""
    return process_count() if any(is_sharded(tensor) for tensors in tables.values() for tensor in tensors.values()) else 1
