"""One piece of writing at a time beside the training: its failure is raised at the next look, and nothing outlives the run."""

from __future__ import annotations

import threading
from collections.abc import Callable


class BackgroundWriter:
    """Runs a piece of work in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work`; the one before must have been waited for."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error

        self._thread = threading.Thread(target=run, name="checkpoint")
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether there is a failure that nobody was told of; does not wait."""
        return self._failure is not None

    def raise_failure(self) -> None:
        """Raise what the work has failed with, if it has; does not wait."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Wait for the work to end, and raise what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.raise_failure()
