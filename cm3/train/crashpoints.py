"""Named moments at which a run can be made to die, so that tests prove that dying there loses nothing.

`CRASH_AT=POINT` (or `POINT@STEP`) in the environment ends the process at that moment with code 137 and without any
clean-up, as `kill -9` or a power cut would. Without the variable a point costs one dictionary look-up.
"""

from __future__ import annotations

import os

from cm3.core.errors import UsageError
from cm3.core.registry import nearest

CRASH_POINTS = (
    "resumed",  # state restored, nothing computed yet
    "batch-ready",  # data of the step made
    "gradients-ready",  # backward done, nothing updated
    "updated",  # optimizer stepped, average not yet
    "step-done",  # everything of the step done, nothing logged or saved
    "logged",  # metrics line written
    "save-started",  # temporary folder open and empty
    "modules-written",  # weights in the temporary folder, the rest missing
    "optimizers-written",  # all tensors written, state.json missing
    "state-written",  # every file written, no manifest yet
    "save-done",  # checkpoint visible, older ones not yet removed
    "retire-renamed",  # an old checkpoint moved aside, not yet deleted
    "retained",  # retention finished
    "evaluated",  # evaluation computed, not yet logged
    "finished",  # last checkpoint and last record written
)


def crash_point(name: str, step: int) -> None:
    """End the process here and now if `CRASH_AT` asks for it."""
    request = os.environ.get("CRASH_AT")
    if request is not None and request in (name, f"{name}@{step}"):
        os._exit(137)


def require_known_crash_point() -> None:
    """Raise `UsageError` when `CRASH_AT` names no point: a drill that never happens would look like one that passed."""
    request = os.environ.get("CRASH_AT")
    if request is not None and (name := request.partition("@")[0]) not in CRASH_POINTS:
        raise UsageError(f"CRASH_AT={request} names no crash point; {nearest(name, list(CRASH_POINTS))}")
