"""Checkpoints of a run: `RUN/checkpoints/step-00000100/`, each an artefact folder (atomic, hashed), and which of them to keep.

A folder holds the tensors of `RunState` as safetensors and a `state.json` (step, seconds, configuration, torch version,
thread and process count). No pickle. The newest one that verifies wins; a damaged one is named, skipped and left in place.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

from cm3.core.artefact import MANIFEST, read_json, storage_errors, sweep, verify, write_json, writing
from cm3.core.errors import ArtefactError, StorageError
from cm3.train.config import TrainConfig
from cm3.train.crashpoints import crash_point
from cm3.train.state import RunState

KIND = "checkpoint"
_NAME = re.compile(r"step-(\d{8,})")
_HABITS = {"checkpoint_every", "keep_checkpoints", "eval_every", "log_every", "tensorboard"}


class Checkpoints:
    """The checkpoints below `run_dir`; `keep` is how many of the newest survive a save."""

    def __init__(self, run_dir: Path, keep: int) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep = keep

    def paths(self) -> dict[int, Path]:
        """Step → folder, oldest first; nothing is verified."""
        found = {int(match[1]): path for path in self.folder.glob("step-*") if (match := _NAME.fullmatch(path.name))}
        return dict(sorted(found.items()))

    def save(self, state: RunState, config: TrainConfig, processes: int) -> Path:
        """Write the checkpoint of `state.step`, then remove those that `keep` no longer covers.

        Raises `StorageError` when it does not fit on the disk; what stood before then still stands.
        """
        path = self.folder / f"step-{state.step:08d}"
        with storage_errors(path):
            self.folder.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not (path / MANIFEST).is_file():  # a damaged one, or `writing` would not take its place
            shutil.rmtree(path, ignore_errors=True)
        _require_space(path, state)
        with writing(path, kind=KIND, provenance={"step": state.step}) as folder:
            crash_point("save-started", state.step)
            state.write_modules(folder)
            crash_point("modules-written", state.step)
            state.write_optimizers(folder)
            crash_point("optimizers-written", state.step)
            write_json(folder / "state.json", _describe(state, config, processes))
            crash_point("state-written", state.step)
        crash_point("save-done", state.step)
        self._retire(state.step)
        crash_point("retained", state.step)
        return path

    def resume(self, state: RunState, config: TrainConfig, processes: int) -> Path | None:
        """Restore `state` from the newest checkpoint that verifies; returns its path, or None when there is none at all.

        Warns about damaged ones and about settings that differ. Raises `ArtefactError` when all of them are damaged or the
        valid one is of another model.
        """
        sweep(self.folder)
        damaged = []
        for path in reversed(self.paths().values()):
            try:
                verify(path, kind=KIND)
            except ArtefactError as error:
                damaged.append(str(error))
                continue
            saved = read_json(path / "state.json")
            for problem in damaged:
                warnings.warn(f"skipped a damaged checkpoint, continuing from {path.name}: {problem}", stacklevel=2)
            state.read(path)
            _warn_differences(path, saved, _describe(state, config, processes))
            state.step, state.seconds = int(saved["step"]), float(saved["seconds"])
            return path
        if damaged:
            raise ArtefactError(f"no checkpoint in {self.folder} is intact; remove that folder to start anew ({damaged[0]})")
        return None

    def _retire(self, step: int) -> None:
        """Remove the oldest checkpoints up to `step`, the one just written; later ones (of a damaged future) are left alone."""
        past = [path for number, path in self.paths().items() if number <= step]
        for path in past[: -self.keep]:
            aside = path.with_name(f".tmp-{path.name}-{os.getpid()}")
            with storage_errors(path):
                os.rename(path, aside)  # so that a half-removed folder is never taken for a damaged checkpoint
            crash_point("retire-renamed", step)
            shutil.rmtree(aside, ignore_errors=True)


def _describe(state: RunState, config: TrainConfig, processes: int) -> dict[str, Any]:
    return {
        "step": state.step,
        "seconds": state.seconds,
        "config": config.model_dump(mode="json"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def _warn_differences(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Results differ in the last bits with another torch or thread count, and altogether with other settings: say so."""
    settings = set(now["config"]) | set(saved["config"])
    changed = {f"config.{key}": (saved["config"].get(key), now["config"].get(key)) for key in settings - _HABITS}
    changed |= {key: (saved.get(key), now[key]) for key in ("torch", "threads", "processes")}
    differences = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in sorted(changed.items()) if old != new)
    if differences:
        warnings.warn(f"continuing {path.name} is not bit-identical to an uninterrupted run: {differences}", stacklevel=3)


def _require_space(path: Path, state: RunState) -> None:
    """Refuse before writing when the checkpoint cannot fit: libraries report a full disk late and misleadingly."""
    tensors = [tensor for name in state.modules for tensor in state.module_tensors(name).values()]
    tensors += [tensor for name in state.optimizers for tensor in state.optimizer_tensors(name).values()]
    tensors += list(state.ema.average.values()) if state.ema is not None else []
    need = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    free = shutil.disk_usage(path.parent).free
    if need > free:
        raise StorageError(f"no space to write {path}: it needs {need:,} bytes, {free:,} are free; free some")
