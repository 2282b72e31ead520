"""Wilson's interval against SciPy and against its own meaning."""

from __future__ import annotations

import pytest
from scipy.stats import binom, binomtest

from cm3.core.errors import UsageError
from cm3.metrics.intervals import wilson_interval


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 256), (256, 256), (3, 10), (192, 256), (5000, 10_000)])
def test_equals_scipy(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(successes, n, z=1.959963984540054)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.93])
def test_covers_about_95_percent(rate: float) -> None:
    n = 256
    intervals = [wilson_interval(successes, n) for successes in range(n + 1)]
    covered = sum(binom.pmf(k, n, rate) for k, (low, high) in enumerate(intervals) if low <= rate <= high)
    assert 0.93 < covered < 0.97


def test_nothing_measured_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_impossible_counts() -> None:
    for successes, n in ((-1, 4), (5, 4), (0, -1)):
        with pytest.raises(UsageError, match="expected a number from 0"):
            wilson_interval(successes, n)
