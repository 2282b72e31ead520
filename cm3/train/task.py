"""What a trainer brings to the loop: the `TrainingTask` protocol and `Shard`, its share of a step's data.

A task owns the networks, the data and the losses; the loop owns optimizers, schedule, precision, checkpoints and logging.

How losses are normalized. `loss` returns the mean over its micro-batch. When micro-batches count unequally (a different
number of trained tokens in each), the task adds the metric "weight" = the sum of its loss weights; the gradient is then
the exact weighted mean over all micro-batches and processes, sum(weight * loss) / sum(weight), whatever way the step was cut.
Without "weight" every micro-batch counts 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class Ratio:
    """A metric that is a mean over something other than micro-batches: `total` over `count` (0-d tensors or numbers)."""

    total: Tensor | float
    count: Tensor | float


Metrics: TypeAlias = dict[str, Tensor | float | Ratio]


@dataclass(frozen=True)
class Shard:
    """Part `index` of the `count` equal parts of one step's data: processes times micro-batches."""

    index: int
    count: int


class TrainingTask(Protocol):
    """Everything the loop needs to know of what is trained.

    `modules` are saved (parameters and buffers), restored, moved to the device and wrapped for several processes; the loop
    replaces the entries by the wrapped ones, so a task must always reach its networks through `self.modules`.
    The first entry of `parameter_groups` is the main optimizer: its weights are averaged when `ema_decay` is set.
    """

    modules: dict[str, nn.Module]

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        """Optimizer name → parameter groups as torch.optim takes them ("params", and optionally "lr", "weight_decay",
        "hidden": True for the matrices that Muon may update). `cm3.train.optimizers.split_decay` makes them."""

    def batch(self, step: int, shard: Shard) -> Any:
        """The data of `shard` in `step` (from 0): tensors, or lists, tuples, dicts and dataclasses of them.

        A pure function of its arguments and the task's seed: that is why resuming needs no loader state.
        """

    def loss(self, name: str, batch: Any, step: int) -> tuple[Tensor | None, Metrics]:
        """Mean loss (0-d) of optimizer `name` on `batch`, and metrics (0-d tensors, numbers, ratios), always of the same names.

        A loss of None skips this optimizer in this step. Reserved metrics: "weight" (see the module text) and "tokens",
        the number of tokens in the batch, which is logged as `tokens_per_s`.
        """

    def evaluate(self) -> dict[str, float]:
        """Held-out metrics; called in evaluation mode, without gradients, with averaged weights if there are any.

        Called on every process, each with the same number of forward passes.
        """


@runtime_checkable
class PictureTask(Protocol):
    """A task that also shows pictures: they are saved after every evaluation, under the same conditions as `evaluate`."""

    def pictures(self) -> dict[str, Image.Image]:
        """Name (usable as a file name) → picture."""


@runtime_checkable
class DescribedTask(Protocol):
    """A task that says which of its settings decide the result: checkpoints keep them, and no other task goes on from there."""

    def settings(self) -> Mapping[str, Any]:
        """Setting → JSON value, nested as in a run file; data as fingerprints, so that it may be moved."""


@runtime_checkable
class MeasuredTask(Protocol):
    """A task that knows what a token costs and where in the data a step stands: both go into the training records."""

    def flops_per_token(self) -> float:
        """Floating-point operations for one token, forward and backward."""

    def position(self, step: int, shards: int) -> dict[str, float]:
        """Where the data stands after `step` updates of `shards` micro-batches each, for example {"epoch": 1.25}."""


@runtime_checkable
class NamingTask(Protocol):
    """A task whose data has names: they stand in what is left behind by a step that went wrong."""

    def document_names(self, step: int, shard: Shard) -> list[list[str]]:
        """Ids of the documents in every row of `batch(step, shard)`."""
