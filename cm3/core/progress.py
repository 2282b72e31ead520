"""Progress of long work on stderr: a bar with the time left on a terminal, a line now and then elsewhere.

`CM3_PROGRESS=off` silences it. Nothing here is ever written to stdout, which belongs to results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

_LINE_INTERVAL_S = 10.0


class Progress:
    """Counts up to `total` (0: nobody knows how many); made by `progress`."""

    def __init__(self, total: int, label: str, unit: str, silent: bool = False) -> None:
        self.total, self.label, self.unit, self.count, self._skipped = total, label, unit, 0, 0
        self._started = self._working_since = self._last_line = time.monotonic()
        self._silent = silent or os.environ.get("CM3_PROGRESS", "") == "off"
        interactive = not self._silent and sys.stderr.isatty()
        self._bar = tqdm(total=total or None, desc=label, unit=unit, file=sys.stderr, leave=True) if interactive else None

    def advance(self, n: int = 1, **figures: float) -> None:
        """Count `n` more units; `figures` (loss, rate …) are shown beside the bar."""
        self.count += n
        if self._bar is not None:
            if figures:
                self._bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()}, refresh=False)
            self._bar.update(n)
        elif not self._silent and time.monotonic() - self._last_line >= _LINE_INTERVAL_S:
            self._print_line(figures)

    def skip(self, n: int) -> None:
        """Count `n` units that an earlier run did, before any others: they say nothing of how long the rest will take."""
        if n == 0:
            return
        self.count += n
        self._skipped += n
        self._working_since = time.monotonic()
        if self._bar is not None:
            self._bar.initial += n
            self._bar.update(n)
            self._bar.unpause()

    def _print_line(self, figures: dict[str, float]) -> None:
        self._last_line = time.monotonic()
        shown = "".join(f", {name} {value:.4g}" for name, value in figures.items())
        done = self.count - self._skipped
        text = f"{self.count}/{self.total} {self.unit}" if self.total else f"{self.count} {self.unit}"
        if self.total and done:
            text += f", {(self._last_line - self._working_since) * (self.total - self.count) / done:.0f} s left"
        elif not self.total:
            text += f" in {self._last_line - self._started:.0f} s"
        print(f"{self.label}: {text}{shown}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar; called by `progress`."""
        if self._bar is not None:
            self._bar.close()


@contextmanager
def progress(total: int, label: str, unit: str = "step", initial: int = 0, silent: bool = False) -> Iterator[Progress]:
    """Show the progress of `total` units of work called `label` (0: unknown); `initial` are already done."""
    bar = Progress(total, label, unit, silent)
    bar.skip(initial)
    try:
        yield bar
    finally:
        bar.close()
