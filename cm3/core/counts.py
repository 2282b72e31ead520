"""Numbers that count something."""

from __future__ import annotations

from cm3.core.errors import UsageError


def require_positive(**counts: int) -> None:
    """Raise `UsageError`, which names it, for the first of `counts` below 1."""
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
