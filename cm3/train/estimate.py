"""What a run will need, before its first step: memory per process and time; and a refusal that says what to change.

Memory is what stays between steps (weights, gradients, optimizer states, averages, the copy of an asynchronous save) and what a
step adds. Time is operations over the speed of a matrix product measured now, at the share of it that training usually reaches:
an order of magnitude to plan by, no promise. Where the two numbers of a step come from: by arithmetic on the configuration for
language models (`cm3.pretrain.estimate`), from one example for every other task (`cm3.train.trial`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cm3.core.errors import UsageError
from cm3.train.config import TrainConfig
from cm3.train.precision import autocast_dtype
from cm3.train.processes import say_on_main_process

EXPECTED_SHARE = 0.4  # of the speed of one large matrix product, which training as a whole usually reaches
USABLE_SHARE = 0.95


@dataclass(frozen=True)
class RunEstimate:
    """What one process needs: `state_bytes` between steps, `step_bytes` more in a step; `available_bytes` there are; `examples`
    of a kind (`unit`, "tokens" say), `flops` and `seconds` of the whole run; `remedy` says what to change if memory is short."""

    parameters: int
    state_bytes: int
    step_bytes: int
    available_bytes: int
    examples: int
    unit: str
    flops: float
    seconds: float
    remedy: Callable[[], str]

    @property
    def total_bytes(self) -> int:
        """Memory at the peak of a step."""
        return self.state_bytes + self.step_bytes

    @property
    def fits(self) -> bool:
        """Whether memory suffices, with a little to spare."""
        return self.total_bytes <= USABLE_SHARE * self.available_bytes

    def announce(self) -> None:
        """Say it on stderr. Raises `UsageError`, saying what to change, unless the run fits into memory."""
        if not self.fits:
            raise UsageError(
                f"the run needs about {_gib(self.total_bytes)} per process ({_gib(self.state_bytes)} for weights and optimizer, "
                f"{_gib(self.step_bytes)} for a step), {_gib(self.available_bytes)} are free; {self.remedy()}"
            )
        say_on_main_process(str(self))

    def __str__(self) -> str:
        time_text = f"{self.seconds / 3600:.1f} h" if self.seconds >= 5400 else f"{self.seconds / 60:.0f} min"
        amount = f"{self.examples / 1e6:.1f}M" if self.examples >= 1e6 else f"{self.examples:,}"
        return (
            f"estimate: {self.parameters / 1e6:.1f}M parameters, {amount} {self.unit}, about {_gib(self.total_bytes)} "
            f"of {_gib(self.available_bytes)} per process, roughly {time_text} ({self.flops:.1e} operations)"
        )


def state_bytes(
    config: TrainConfig, processes: int, weights: int, trained: int, hidden: int = 0, averaged: int | None = None, whole: int = 0
) -> int:
    """What stays in memory between steps on one process: everything is float32.

    Numbers of: all `weights`; those `trained`; of these the `hidden` matrices, which Muon may update; those `averaged` where
    `ema_decay` is set (None: the trained ones); and the largest part that is `whole` at a time when the rest is sharded.
    """
    moments = 2 * trained - (hidden if config.optimizer == "muon" else 0)  # Muon keeps one number per hidden weight
    average = (trained if averaged is None else averaged) if config.ema_decay is not None else 0
    copies = weights + trained + moments + average
    if config.async_save:
        copies += copies - trained  # everything but the gradients
    if config.sharding == "full" and processes > 1:
        return 4 * copies // processes + 4 * 2 * whole
    return 4 * copies + (4 * trained if processes > 1 else 0)  # the buckets of the exchange


def training_device(config: TrainConfig) -> torch.device:
    """Where a run with this configuration will compute."""
    return torch.device("cuda" if torch.cuda.is_available() and config.device != "cpu" else "cpu")


def bytes_per_number(config: TrainConfig, device: torch.device) -> int:
    """Of an activation: 4, or 2 under autocast."""
    return 4 if autocast_dtype(config.precision, device) is None else 2


def expected_seconds(flops: float, config: TrainConfig, device: torch.device) -> float:
    """For `flops` operations on this device, by the speed of a matrix product measured now."""
    return flops / (EXPECTED_SHARE * matrix_speed(device, autocast_dtype(config.precision, device)))


def matrix_speed(device: torch.device, dtype: torch.dtype | None) -> float:
    """Operations per second of a large square matrix product, the best of three (some hundredths of a second)."""
    size = 4096 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
