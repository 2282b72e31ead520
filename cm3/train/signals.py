"""Stopping a run politely: the first SIGTERM or SIGINT asks, the second one kills.

During a step the request waits until the step is complete. During an evaluation, where the state is complete already,
it interrupts at once (`StopRequested`), so that the time to save does not depend on how long an evaluation takes. Several
processes leave an evaluation together, at the next forward pass (`cm3.train.loop`).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
Result = TypeVar("Result")


class StopRequested(BaseException):
    """Ends an evaluation; not an Exception, so that a task's `except` does not swallow it."""


class StopSignals:
    """Remembers the first stop signal; made by `stop_signals`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._interruptible = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number)
        if self._interruptible:
            raise StopRequested

    def interruptible(self, work: Callable[[], Result]) -> Result | None:
        """`work()`, or None when a stop signal came before or during it. `work` must not leave state half changed."""
        try:
            self._interruptible = True
            try:
                return None if self.received is not None else work()
            finally:
                self._interruptible = False
        except StopRequested:
            return None


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Install the handlers for the block (in the main thread; elsewhere signals are not ours) and restore the old ones."""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, stop.handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
