"""The range of a scale that multiplies logits."""

from __future__ import annotations

from cm3.core.errors import UsageError

LARGEST = 1000.0  # beyond it differences of logits leave the range of what floats tell apart


def require_scale(name: str, value: float) -> None:
    """Raise `UsageError` unless `value` of the option `name` lies in [0, 1000]."""
    if not 0 <= value <= LARGEST:  # NaN fails this too
        raise UsageError(f"{name} must be a number of at least 0 and at most {LARGEST:g}, got {value}")
