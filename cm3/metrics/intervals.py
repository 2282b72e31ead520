"""Confidence intervals for a proportion, so that no accuracy is shown without its uncertainty."""

from __future__ import annotations

import math

from cm3.core.errors import UsageError


def wilson_interval(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (low, high) in [0, 1] for `successes` of `n` trials; (0, 1) when n is 0.

    z = 1.96 covers 95 %. It stays inside [0, 1] and keeps its coverage at 0 and n successes, where the normal one has width 0.
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    Raises `UsageError` unless 0 ≤ successes ≤ n.
    """
    if not 0 <= successes <= n:
        raise UsageError(f"{successes} successes of {n} trials: expected a number from 0 to {n}")
    if n == 0:
        return 0.0, 1.0
    rate, weight = successes / n, z * z / n
    center = (rate + weight / 2) / (1 + weight)
    half_width = z * math.sqrt(rate * (1 - rate) / n + weight / (4 * n)) / (1 + weight)
    low = 0.0 if successes == 0 else center - half_width
    high = 1.0 if successes == n else center + half_width
    return low, high
