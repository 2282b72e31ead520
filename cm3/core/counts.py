"""Numbers that count something."""

from __future__ import annotations

from numbers import Integral

from cm3.core.errors import UsageError


def require_positive(**counts: int) -> None:
    """Raise `UsageError`, which names it, for the first of `counts` that is no whole number or below 1."""
    for name, value in counts.items():
        if not isinstance(value, Integral):
            raise UsageError(f"{name} must be a whole number, got {value!r}")
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
