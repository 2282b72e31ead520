"""Loss spikes: a loss far above those of the steps before, as a bad batch or a diverging run gives.

A loss is a spike when it lies more than `sigma` standard deviations above the mean of the last 128 losses that were none (the
rule of OLMo-core's SkipStepOptimizer; there spikes stay in the window and hide the next one). For normal noise and six deviations
that is one false alarm in some 10^8 steps. A level that stays is no spike: after `MOST_IN_A_ROW` the losses count again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from math import inf, sqrt
from statistics import fmean
from typing import Any

WINDOW = 128
MOST_IN_A_ROW = 3
_FEWEST = WINDOW // 2  # losses before the first judgement
_SMALLEST_DEVIATION = 1e-3  # of the mean: a loss that hardly moves is not judged by its rounding


class SpikeDetector:
    """Judges one loss after the other; `in_a_row` is how many of the latest were spikes."""

    def __init__(self, sigma: float = 6.0) -> None:
        self.sigma, self.in_a_row = sigma, 0
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def exceeded(self, loss: float) -> float | None:
        """The limit that `loss` (finite) is above, None when it is no spike; remembers it."""
        limit = self._limit() if len(self._losses) >= _FEWEST else inf
        self.in_a_row = self.in_a_row + 1 if loss > limit else 0
        if loss <= limit or self.in_a_row > MOST_IN_A_ROW:
            self._losses.append(loss)
        return limit if loss > limit else None

    def _limit(self) -> float:
        mean = fmean(self._losses)
        deviation = sqrt(fmean((loss - mean) ** 2 for loss in self._losses))
        return mean + self.sigma * max(deviation, _SMALLEST_DEVIATION * abs(mean))

    def record(self) -> dict[str, Any]:
        """What it remembers, as JSON values that give back the same bits."""
        return {"losses": list(self._losses), "in_a_row": self.in_a_row}

    def load(self, record: Mapping[str, Any]) -> None:
        """Go on from `record`; from nothing when it is empty."""
        self.in_a_row = int(record.get("in_a_row", 0))
        self._losses = deque(map(float, record.get("losses", ())), maxlen=WINDOW)
