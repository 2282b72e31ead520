"""Metrics of a run: averaged between two records without touching the device, written as JSON lines and TensorBoard events.

`RUN/metrics.jsonl` holds one record per line: {"kind": "train" | "eval", "step", "seconds", and the figures}. After a restart the
lines behind the resumed step are dropped, so every step is told of once; a run that goes on between two records averages its next
one over the steps since then alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from cm3.core.artefact import storage_errors, write_text
from cm3.core.errors import UsageError
from cm3.train.task import Metrics, Ratio

Record = dict[str, Any]


class Meter:
    """Weighted means of metrics since the last record; tensors stay on their device until then."""

    def __init__(self) -> None:
        self._totals: dict[str, list[Tensor | float]] = defaultdict(list)
        self._weights: dict[str, list[Tensor | float]] = defaultdict(list)

    def add(self, metrics: Metrics, weight: Tensor | float = 1.0, prefix: str = "") -> None:
        """Remember one micro-batch's `metrics`, which count `weight`."""
        for name, value in metrics.items():
            value = value if isinstance(value, Ratio) else Ratio(value, weight)
            exact = isinstance(metrics[name], Ratio) or name == "tokens"
            total = value.total.detach() if isinstance(value.total, Tensor) else value.total
            self._totals[prefix + name].append(total if exact else total * value.count)
            self._weights[prefix + name].append(value.count)

    def collect(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over everything added, on all processes, and start over. Every process must have added the same names.

        "tokens" is a count, not a measurement: it is summed. A `Ratio` is the sum of its totals over the sum of its counts.
        """
        names = sorted(self._totals)
        sums = torch.zeros(len(names), 2, dtype=torch.float64)  # (names, [weighted sum, weight])
        for row, name in enumerate(names):
            sums[row, 0], sums[row, 1] = _stack(self._totals[name]).sum(), _stack(self._weights[name]).sum()
        self._totals.clear()
        self._weights.clear()
        if accelerator.num_processes > 1:
            # gloo and NCCL both reduce float32 everywhere; float64 is missing on some accelerators
            sums = accelerator.reduce(sums.float().to(accelerator.device), "sum").double().cpu()
        means = sums[:, 0] / sums[:, 1]  # not a number where nothing had weight
        figures = {name: float(mean) for name, mean in zip(names, means)}
        if "tokens" in figures:
            figures["tokens"] = float(sums[names.index("tokens"), 0])
        return figures


class RunLog:
    """Writes the records of one run; `history` holds all of them, earlier restarts included. Only `main` writes."""

    def __init__(self, run_dir: Path, step: int, main: bool, tensorboard: bool, wandb: str | None = None) -> None:
        self._run_dir, self._main = run_dir, main
        self.path = run_dir / "metrics.jsonl"
        self.history = [record for record in read_records(self.path) if record["step"] <= step]
        self._stack = ExitStack()
        self._board: Any = None
        self._wandb: Any = None
        if main:
            self._wandb = _wandb_run(run_dir, wandb) if wandb else None
            text = "".join(json.dumps(record) + "\n" for record in self.history)
            write_text(self.path, text)
            with storage_errors(self.path):
                self._stream = self._stack.enter_context(self.path.open("a", encoding="utf-8"))
            self._board = _tensorboard_writer(run_dir, step) if tensorboard else None

    def write(self, kind: str, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Append one record; figures that are not finite become null, which JSON can hold."""
        shown = {name: float(value) if math.isfinite(value) else None for name, value in figures.items()}
        record: Record = {"kind": kind, "step": step, "seconds": round(seconds, 3), **shown}
        self.history.append(record)
        if not self._main:
            return
        with storage_errors(self.path):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()
        if self._board is not None:
            for name, value in shown.items():
                if value is not None:
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{name}": value for name, value in shown.items() if value is not None}, step=step)

    def write_pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        """Save pictures as `RUN/pictures/step-XXXXXXXX-NAME.png`, and as TensorBoard events."""
        if not self._main:
            return
        folder = self._run_dir / "pictures"
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
            for name, picture in pictures.items():
                picture.save(folder / f"step-{step:08d}-{name}.png")
                if self._board is not None:
                    self._board.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Close the files."""
        self._stack.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_records(path: Path) -> list[Record]:
    """The records of a metrics file; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    records = []
    with suppress(ValueError):
        for line in path.read_text("utf-8").splitlines():
            records.append(json.loads(line))
    return records


def _stack(values: list[Tensor | float]) -> Tensor:
    """(n,) float64 on the CPU, with one transfer for all tensors."""
    if not any(isinstance(value, Tensor) for value in values):
        return torch.tensor(values, dtype=torch.float64)
    device = next(value.device for value in values if isinstance(value, Tensor))
    return torch.stack([torch.as_tensor(value, device=device).float() for value in values]).double().cpu()


def _tensorboard_writer(run_dir: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1)


def _wandb_run(run_dir: Path, project: str) -> Any:
    """The Weights & Biases run of this run folder: the same one after a restart. Raises `UsageError` without the package."""
    try:
        import wandb
    except ImportError:
        raise UsageError(f"train.wandb is {project!r}, but wandb is not installed: `pip install wandb`, or unset it") from None
    identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    return wandb.init(project=project, id=identity, name=run_dir.name, resume="allow", dir=str(run_dir))
