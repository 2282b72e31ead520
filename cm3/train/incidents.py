"""What is left behind when a step goes wrong: `RUN/KIND-step-XXXXXXXX.json`, enough to compute it again (`cm3.train.replay`).

KIND is "nonfinite" (a loss or gradient is NaN or infinite) or "spike" (`cm3.train.spikes`). The parameters of that optimizer are
those from before the update. No checkpoint is written: buffers that a forward pass changes (codebook averages, for example) may
already hold the bad numbers. Resuming from the newest checkpoint meets the same batch again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from cm3.core.artefact import read_json, write_json
from cm3.core.errors import ArtefactError, CM3Error, LossSpikeError, NonFiniteError
from cm3.train.processes import is_main_process


class BatchRecord(BaseModel):
    """One micro-batch: part `index` of the `count` of its step; sha256: `batch_digest`; finite: whether its numbers are;
    documents: ids of the documents in each of its rows, None when the task does not name them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    count: int
    sha256: str
    finite: bool
    documents: list[list[str]] | None = None


class Incident(BaseModel):
    """A step that went wrong, as one process saw it.

    generator_seed: what the global generators of torch, NumPy and Python were seeded with before the step, the whole of their
    state; updated_before: the optimizers that had made their update of this step; loss, gradient_norm: as text, which JSON needs
    for NaN; stops: whether the run ends here, without the update.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["nonfinite", "spike"]
    step: int
    seed: int
    generator_seed: int
    optimizer: str
    updated_before: list[str]
    loss: str
    gradient_norm: str
    limit: float | None = None
    stops: bool
    parameters_with_bad_gradients: list[str]
    batches: list[BatchRecord]

    def write(self, run_dir: Path) -> Path:
        """Write it; every process has a file of its own, that of the first without its number."""
        rank = "" if is_main_process() else f"-process-{self.batches[0].index}"
        path = run_dir / f"{self.kind}-step-{self.step:08d}{rank}.json"
        write_json(path, self.model_dump(mode="json"))
        return path

    def error(self, path: Path) -> CM3Error:
        """The error to end the run with; `path` is where the file lies."""
        others = " and ".join(repr(name) for name in self.updated_before)
        done = (
            f"{others} had made the update of this step already, {self.optimizer!r} has not" if others else "nothing was updated"
        )
        advice = f"{done}, see {path}; lower the learning rate or look at that batch"
        figures = f"loss {self.loss}, gradient norm {self.gradient_norm}"
        if self.kind == "spike":
            return LossSpikeError(f"{self.says()} after as many spikes in a row as are skipped; {advice}")
        what = "gradient norm" if torch.isfinite(torch.tensor(float(self.loss))) else "loss"
        return NonFiniteError(f"the {what} of {self.optimizer!r} is not finite in step {self.step} ({figures}); {advice}")

    def says(self) -> str:
        """A spike in words."""
        return f"the loss of {self.optimizer!r} in step {self.step} is a spike ({self.loss}, expected at most {self.limit:.6g})"


def read_incident(path: Path) -> Incident:
    """What `Incident.write` has written. Raises `ArtefactError` for any other file."""
    try:
        return Incident.model_validate(read_json(path))
    except ValidationError:
        raise ArtefactError(f"{path} does not describe a step of a run; name a file RUN/nonfinite-step-….json") from None


def batch_digest(batch: Any) -> str:
    """SHA-256 (hex) over the tensors and plain values of a batch, in order."""
    digest = hashlib.sha256()
    for leaf in _leaves(batch):
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            digest.update(leaf.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def all_finite(batch: Any) -> bool:
    """Whether every floating-point number of a batch is finite."""
    floats = (leaf for leaf in _leaves(batch) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return all(bool(torch.isfinite(leaf).all()) for leaf in floats)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key])
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for item in value:
            yield from _leaves(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            yield from _leaves(getattr(value, entry.name))
    else:
        yield value
