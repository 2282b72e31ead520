"""Exponential moving average of weights: kept beside the live ones, exchanged with them for an evaluation.

Polyak and Juditsky 1992; the warm-up of the decay is the usual one of TensorFlow and diffusion trainers: without it, a
short run would average in its random initialization.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from cm3.train.sharding import is_sharded, local


def ema_decay_at(step: int, decay: float) -> float:
    """The decay after `step` updates (from 1): grows as (1 + step) / (10 + step) up to `decay`."""
    return min(decay, (1.0 + step) / (10.0 + step))


class EMA:
    """The averaged copies of `parameters` (full name → live parameter)."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self._live = dict(parameters)
        self.average = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the live weights after update number `step` (from 1)."""
        averages, live = ([local(tensor) for tensor in side.values()] for side in (self.average, self._live))
        torch._foreach_lerp_(averages, live, 1.0 - ema_decay_at(step, self.decay))

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Take over saved averages. Raises KeyError for a missing name, RuntimeError for another shape."""
        for name, mine in self.average.items():
            mine.copy_(average[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Exchange live and averaged weights for the block (storages are exchanged; sharded weights are copied)."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self._live.items():
            if is_sharded(parameter):  # its storage belongs to the sharding, so the numbers move
                mine, other = local(parameter.detach()), local(self.average[name])
                kept = mine.clone()
                mine.copy_(other)
                other.copy_(kept)
            else:
                parameter.data, self.average[name] = self.average[name], parameter.data
