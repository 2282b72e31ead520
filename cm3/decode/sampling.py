"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, then the largest of logits plus noise.

Pure functions on logits (R, W) float; forbidden ids are -inf before and stay so. Order as in Chameleon's reference
inference and in transformers: what the strategy gives, then the grammar, the penalty, temperature, the filters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cm3.core.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    temperature: 0 (or less than 1e-6) takes the most likely token; top_k: keep the k most likely ids (0: all); top_p: keep
    the smallest set of most likely ids whose probabilities reach p (1: all); min_p: keep ids at least so probable as min_p
    times the most likely one (0: all; arXiv:2407.01082); repetition_penalty: above 1, ids that were already seen become less
    likely (1: off; arXiv:1909.05858). Raises `UsageError` for a value out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature must be a number of at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise UsageError(f"top_k must be at least 0 (0 keeps all), got {self.top_k}")
        if not 0 < self.top_p <= 1:  # NaN fails this too
            raise UsageError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise UsageError(f"min_p must lie in [0, 1), got {self.min_p}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise UsageError(f"repetition_penalty must be a number above 0 (1 is none), got {self.repetition_penalty}")


COLDEST = 1e-6  # a temperature below this would overflow what it divides
GREEDY = Sampling(temperature=0.0)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Everything below the k-th largest logit of its row becomes -inf; ties with the k-th stay. (R, W) → (R, W)."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    smallest = _ascending(logits)[..., -k, None]  # (R, 1)
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the most likely ids up to and including the one at which their probabilities reach `p`. (R, W) → (R, W).

    Ids exactly as likely as the last one kept stay too.
    """
    if p >= 1.0:
        return logits
    probabilities = logits.softmax(dim=-1)
    ordered = _ascending(probabilities)
    dropped = (ordered.cumsum(dim=-1) <= 1.0 - p).sum(dim=-1, keepdim=True)  # (R, 1) how many are less likely than needed
    smallest = ordered.gather(-1, dropped.clamp_max(logits.shape[-1] - 1))  # (R, 1)
    return logits.masked_fill(probabilities < smallest, -torch.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the ids whose probability is at least `p` times the largest of their row. (R, W) → (R, W)."""
    if p <= 0.0:
        return logits
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), -torch.inf)


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make `seen` ids less likely: logits above 0 are divided by `penalty`, others multiplied. logits, seen bool: (R, W).

    The sign is that of what the strategy gives: logits, as in transformers, or the log-ratio of CD-K.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _ascending(values: Tensor) -> Tensor:
    """The rows of (R, W) float32 sorted; on a CPU by NumPy, whose vectorized sort of values alone is many times faster."""
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.detach().numpy(), axis=-1))


def filtered(logits: Tensor, sampling: Sampling) -> Tensor:
    """The logits of the distribution to draw from, for a temperature of at least 1e-6."""
    cooled = logits if sampling.temperature == 1.0 else logits / sampling.temperature
    return keep_min_p(keep_top_p(keep_top_k(cooled, sampling.top_k), sampling.top_p), sampling.min_p)


def draw(logits: Tensor, sampling: Sampling, noise: Tensor | None) -> Tensor:
    """One index (R,) int64 into the last axis of logits (R, W); noise: (R, W) Gumbel, unused below temperature 1e-6."""
    if sampling.temperature < COLDEST or noise is None:
        return logits.argmax(dim=-1)
    return (filtered(logits, sampling) + noise).argmax(dim=-1)
