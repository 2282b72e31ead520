"""Learning-rate schedules: pure functions from a step to a factor in [0, 1], so there is no scheduler state to save.

Cosine: Loshchilov and Hutter, arXiv:1608.03983. Warmup-stable-decay: MiniCPM, arXiv:2404.06395. Polynomial decay with
power 1 is what metaseq (CM3, CM3Leon) trains with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType

from cm3.train.config import TrainConfig


def learning_rate_factor(config: TrainConfig, step: int) -> float:
    """The factor on the learning rate for the update number `step` (from 0): warm-up times schedule.

    Of N = steps - warmup_steps updates after warm-up the n-th (from 0) is at progress n / N: the first has the whole learning
    rate, the last is 1 / N before the floor, so with `min_lr_ratio` 0 it still changes something.
    """
    progress = min(max((step - config.warmup_steps) / (config.steps - config.warmup_steps), 0.0), 1.0)
    decay = _SHAPES[config.schedule](progress, config)
    return warmup(step, config.warmup_steps) * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * decay)


def warmup(step: int, warmup_steps: int) -> float:
    """Linear from 1/warmup_steps at step 0 to 1; never 0, so the first update is not wasted."""
    return min((step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 as `progress` goes from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def wsd(progress: float, decay_fraction: float) -> float:
    """1, then linearly to 0 as `progress` goes through the last `decay_fraction` of its way."""
    if progress <= 1.0 - decay_fraction:
        return 1.0
    return (1.0 - progress) / decay_fraction


def polynomial(progress: float, power: float) -> float:
    """(1 - progress) ** power."""
    return (1.0 - progress) ** power


_SHAPES: MappingProxyType[str, Callable[[float, TrainConfig], float]] = MappingProxyType(
    {
        "constant": lambda progress, config: constant(progress),
        "cosine": lambda progress, config: cosine(progress),
        "wsd": lambda progress, config: wsd(progress, config.decay_fraction),
        "polynomial": lambda progress, config: polynomial(progress, config.power),
    }
)
