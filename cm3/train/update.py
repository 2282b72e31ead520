"""One update of one named optimizer: `accumulate` (forward and backward over the micro-batches), then `apply` (clip and step).

The two are apart because the loop looks at the numbers in between: nothing is updated from a loss or a gradient that is
not finite. There is one transfer from the device per update, for exactly that look.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from cm3.core.errors import UsageError
from cm3.train.metrics import Meter
from cm3.train.optimizers import NamedOptimizer
from cm3.train.precision import autocast
from cm3.train.sharding import whole
from cm3.train.task import Metrics, Ratio, TrainingTask


@dataclass(frozen=True)
class Measured:
    """What `accumulate` found: the loss, the norm of its gradient, and stored gradients times `scale` = that gradient."""

    loss: float
    gradient_norm: float
    scale: float

    @property
    def finite(self) -> bool:
        """Whether an update from this is safe."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


@dataclass(frozen=True)
class Updater:
    """What every update of a run needs: `parameters` are all those of the modules that require gradients."""

    task: TrainingTask
    accelerator: Accelerator
    dtype: torch.dtype | None
    parameters: Sequence[Tensor]
    meter: Meter

    def accumulate(self, optimizer: NamedOptimizer, batches: Sequence[Any], step: int, prefix: str) -> Measured | None:
        """Compute this optimizer's gradients over all micro-batches and processes; None when the task skips the step.

        Stored gradients are those of the weighted sum of losses, averaged over processes; `Measured.scale` normalizes
        them. With a single micro-batch the weight cancels, so the loss is taken as it is. Metrics get `prefix`.
        """
        weighted = len(batches) * self.accelerator.num_processes > 1
        loss_sum: Tensor | float = 0.0
        weight_sum: Tensor | float = 0.0
        for parameter in self.parameters:
            parameter.grad = None
        for index, batch in enumerate(batches):
            with self._gradient_exchange(last=index == len(batches) - 1):
                with autocast(self.dtype, self.accelerator.device):
                    loss, metrics = self.task.loss(optimizer.name, batch, step)
                if loss is None:
                    return None
                weight = _weight(metrics) if weighted else 1.0
                part = loss * weight if weighted else loss
                self._backward(part, optimizer)
            loss_sum, weight_sum = loss_sum + part.detach(), weight_sum + weight
            shown: Metrics = {"loss": loss, **metrics}
            shown.pop("weight", None)
            self.meter.add(shown, weight, prefix)
        return self._measure(optimizer, loss_sum, weight_sum)

    def apply(self, optimizer: NamedOptimizer, measured: Measured, clip_norm: float | None) -> None:
        """Normalize and clip the stored gradients in one pass, and update the parameters."""
        factor = measured.scale
        if clip_norm is not None and measured.gradient_norm > clip_norm:
            factor *= clip_norm / measured.gradient_norm
        if factor != 1.0:
            torch._foreach_mul_(_gradients(optimizer), factor)
        optimizer.step()
        optimizer.zero_grad()

    def _backward(self, loss: Tensor, optimizer: NamedOptimizer) -> None:
        # With several optimizers only the paths to this one's parameters are walked. Data-parallel wrappers expect a
        # gradient for everything they hold, so there the surplus gradients are computed, and dropped at the next start.
        only_these = len(optimizer.parameters) < len(self.parameters) and self.accelerator.num_processes == 1
        self.accelerator.backward(loss, **({"inputs": optimizer.parameters} if only_these else {}))

    @torch.no_grad()
    def _measure(self, optimizer: NamedOptimizer, loss_sum: Tensor | float, weight_sum: Tensor | float) -> Measured:
        device = self.accelerator.device
        sums = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value in (loss_sum, weight_sum)])
        if self.accelerator.num_processes > 1:
            sums = self.accelerator.reduce(sums, "sum")
        if not (gradients := _gradients(optimizer)):
            raise UsageError(f"the loss of {optimizer.name!r} depends on none of its parameters; check the task's loss()")
        # per-tensor norms first: one pass over memory without a concatenated copy
        stored_norm = whole(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))).float()
        loss, weight, norm = torch.cat([sums, stored_norm.reshape(1)]).tolist()
        if weight == 0.0:  # nothing in this step counts, so the gradient is zero
            return Measured(loss=0.0, gradient_norm=0.0 * norm, scale=0.0)
        scale = self.accelerator.num_processes / weight
        return Measured(loss=loss / weight, gradient_norm=norm * scale, scale=scale)

    @contextmanager
    def _gradient_exchange(self, last: bool) -> Iterator[None]:
        """Let processes exchange gradients only in the last micro-batch of a step."""
        with ExitStack() as stack:
            if not last and self.accelerator.num_processes > 1:
                for module in self.task.modules.values():
                    if not isinstance(module, FSDPModule):
                        stack.enter_context(self.accelerator.no_sync(module))
            for module in self.task.modules.values():
                if isinstance(module, FSDPModule):
                    module.set_requires_gradient_sync(last)
            yield


def _weight(metrics: Metrics) -> Tensor | float:
    """How much a micro-batch counts."""
    weight = metrics.get("weight", 1.0)
    if isinstance(weight, Ratio):
        raise UsageError('the metric "weight" is a ratio; give the sum of the loss weights')
    return weight


def _gradients(optimizer: NamedOptimizer) -> list[Tensor]:
    return [parameter.grad for parameter in optimizer.parameters if parameter.grad is not None]
