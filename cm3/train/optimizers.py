"""Optimizers by name: AdamW (fused), and Muon for hidden matrices beside AdamW for everything else.

`NamedOptimizer` is one entry of a task's `parameter_groups()`: the unit that has a loss, a gradient norm and an update.
AdamW: arXiv:1711.05101. Muon: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the update scaled to the size of
AdamW's as in "Muon is Scalable for LLM Training" (arXiv:2502.16982), so one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from cm3.core.errors import UsageError
from cm3.train.config import TrainConfig
from cm3.train.sharding import local, placed_like, whole

_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NS_STEPS = 5
_TOGETHER = 1 << 22  # numbers that are orthogonalized at once: small matrices alone leave cores idle


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon should update it: two-dimensional, and neither an embedding nor an output head by its name."""
    return parameter.ndim == 2 and not any("embed" in part or part.endswith("head") for part in name.split("."))


def split_decay(
    named_parameters: Iterable[tuple[str, nn.Parameter]], hidden: Callable[[str, Tensor], bool] = is_hidden_matrix
) -> list[dict[str, Any]]:
    """Parameter groups for `TrainingTask.parameter_groups`: no weight decay on vectors (biases, norms), the configured one on
    everything else, and the matrices for which `hidden(name, parameter)` holds marked for Muon. Frozen parameters are left out.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        target = vectors if parameter.ndim < 2 else matrices if hidden(name, parameter) else others
        target.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "hidden": True},
        {"params": others},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class Muon(Optimizer):
    """Momentum, orthogonalized by Newton-Schulz iterations in fp32 (bf16, as in torch.optim.Muon, is unusable on CPUs).

    Parameters are two-dimensional; the decay is decoupled, as in AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    shape = tuple(parameter.shape)
                    raise UsageError(f"Muon updates matrices, got a parameter of shape {shape}; do not mark its group 'hidden'")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for alike in _of_one_shape(parameter for parameter in group["params"] if parameter.grad is not None):
                size = 0.2 * max(alike[0].shape) ** 0.5  # the root mean square of AdamW's updates is about 0.2
                ahead = [self._nesterov(parameter, group["momentum"]) for parameter in alike]
                directions = orthogonalize(torch.stack([whole(matrix) for matrix in ahead]))  # complete ones, on every process
                for parameter, direction in zip(alike, directions, strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(placed_like(parameter, direction.to(parameter.dtype)), alpha=-group["lr"] * size)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient looking ahead along the momentum, which is updated."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"].lerp_(gradient, 1.0 - momentum)
        return gradient.lerp(buffer, momentum)


def _of_one_shape(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in stacks of one shape, no stack larger than `_TOGETHER` unless it is a single matrix."""
    by_shape: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_shape.setdefault(parameter.shape, []).append(parameter)
    for shape, alike in by_shape.items():
        count = max(1, _TOGETHER // shape.numel())
        yield from (alike[start : start + count] for start in range(0, len(alike), count))


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices (K, M, N) with the singular vectors of `matrices` and all singular values near 1 (about 0.7 to 1.2), in fp32."""
    a, b, c = _NS_COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).float()  # (K, m, n), m ≤ n
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(_NS_STEPS):
        gram = x @ x.mT  # (K, m, m)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class NamedOptimizer:
    """The parameters of one entry of `parameter_groups()` and the torch optimizers that update them.

    `parameters` are those that require gradients; `optimizers` maps "adamw" and "muon" to the ones in use.
    """

    def __init__(self, name: str, groups: list[dict[str, Any]], config: TrainConfig) -> None:
        groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
        groups = [group for group in groups if group["params"]]
        self.name = name
        self.parameters: list[nn.Parameter] = [parameter for group in groups for parameter in group["params"]]
        if not self.parameters:
            raise UsageError(f"optimizer {name!r} has no parameter that requires a gradient; check the task's parameter_groups()")
        self.optimizers = _torch_optimizers(groups, config)
        for group in self._groups():
            group["initial_lr"] = group["lr"]

    def set_learning_rate(self, factor: float) -> None:
        """Scale every group's own learning rate by `factor`."""
        for group in self._groups():
            group["lr"] = group["initial_lr"] * factor

    def step(self) -> None:
        """Update the parameters from their gradients."""
        for optimizer in self.optimizers.values():
            optimizer.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state(self) -> dict[Tensor, dict[str, Tensor]]:
        """Parameter → its optimizer state (momenta, step count), all tensors."""
        return {parameter: dict(state) for o in self.optimizers.values() for parameter, state in o.state.items() if state}

    def state_bytes(self) -> int:
        """Bytes that this process holds of `state()` once every parameter was updated: two momenta and a step count in fp32 for
        AdamW, one momentum for Muon."""
        total = 0
        for name, optimizer in self.optimizers.items():
            held = [local(parameter) for group in optimizer.param_groups for parameter in group["params"]]
            moments = sum(parameter.numel() * parameter.element_size() for parameter in held)
            total += moments if name == "muon" else 2 * moments + 4 * len(held)
        return total

    def load_state(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Take over `state` as `state()` gave it; parameters it does not name start anew."""
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
            for group in optimizer.param_groups:
                optimizer.state.update({parameter: dict(state[parameter]) for parameter in group["params"] if parameter in state})

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]


def _torch_optimizers(groups: list[dict[str, Any]], config: TrainConfig) -> dict[str, Optimizer]:
    """Groups marked "hidden" go to Muon when it is configured, all others to AdamW."""
    to_muon = [config.optimizer == "muon" and bool(group.get("hidden")) for group in groups]
    plain = [{key: value for key, value in group.items() if key != "hidden"} for group in groups]
    muon_groups = [group for group, muon in zip(plain, to_muon) if muon]
    adamw_groups = [group for group, muon in zip(plain, to_muon) if not muon]
    optimizers: dict[str, Optimizer] = {}
    if muon_groups:
        optimizers["muon"] = Muon(muon_groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    if adamw_groups:
        optimizers["adamw"] = AdamW(
            adamw_groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )
    return optimizers
