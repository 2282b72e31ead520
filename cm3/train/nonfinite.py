"""What is left behind when a loss or gradient is not finite: `RUN/nonfinite-step-XXXXXXXX.json`, enough to see it again.

The parameters of that optimizer are those from before the update. No checkpoint is written: buffers that a forward pass changes
(codebook averages, for example) may already hold the bad numbers. Resuming from the newest checkpoint meets the same batch again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3.core.artefact import write_json
from cm3.core.errors import NonFiniteError
from cm3.train.optimizers import NamedOptimizer
from cm3.train.processes import is_main_process
from cm3.train.sharding import local
from cm3.train.state import RunState
from cm3.train.task import Shard
from cm3.train.update import Measured


def nonfinite_error(
    run_dir: Path,
    state: RunState,
    optimizer: NamedOptimizer,
    measured: Measured,
    shards: Mapping[Shard, Any],
    seed: int,
    updated: Sequence[str] = (),
) -> NonFiniteError:
    """Write the replay file and return the error to raise.

    shards: this process's batches of the step; updated: the optimizers that made their update of this step before.
    """
    rank = "" if is_main_process() else f"-process-{next(iter(shards)).index}"
    path = run_dir / f"nonfinite-step-{state.step:08d}{rank}.json"
    bad = [state.names[p] for p in optimizer.parameters if p.grad is not None and not torch.isfinite(local(p.grad)).all()]
    replay = {
        "step": state.step,
        "seed": seed,
        "optimizer": optimizer.name,
        "updated_before": list(updated),
        "loss": str(measured.loss),
        "gradient_norm": str(measured.gradient_norm),
        "parameters_with_bad_gradients": bad,
        "batches": [
            {"index": shard.index, "count": shard.count, "sha256": batch_digest(batch), "finite": _all_finite(batch)}
            for shard, batch in shards.items()
        ],
    }
    write_json(path, replay)
    what = "loss" if measured.loss != measured.loss or abs(measured.loss) == float("inf") else "gradient norm"
    others = " and ".join(repr(name) for name in updated)
    done = f"{others} had made the update of this step already, {optimizer.name!r} has not" if updated else "nothing was updated"
    return NonFiniteError(
        f"the {what} of {optimizer.name!r} is not finite in step {state.step} (loss {measured.loss}, gradient norm "
        f"{measured.gradient_norm}); {done}, see {path}; lower the learning rate or look at that batch"
    )


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


def _all_finite(batch: Any) -> bool:
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
