"""Several processes as one: who speaks, and doing a thing on all of them or failing on all of them.

A process that fails alone leaves the others waiting in their next exchange until a time-out of many minutes; `agreed` makes
a failure of one the failure of all, with the same sentence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from cm3.core import errors
from cm3.core.errors import CM3Error


def is_main_process() -> bool:
    """Whether this process is the one that writes and speaks: the first, also before the processes have met."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank() == 0
    return int(os.environ.get("RANK", "0")) == 0


def say_on_main_process(line: str) -> None:
    """A line on stderr, from one process, unless progress is switched off."""
    if is_main_process() and os.environ.get("CM3_PROGRESS", "") != "off":
        print(line, file=sys.stderr, flush=True)


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def runs_on_cpu(device: str) -> bool:
    """Whether a training with this `TrainConfig.device` uses CPUs: accelerate lets processes meet there only when it is told."""
    return device == "cpu" or not torch.accelerator.is_available()


def added_up(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, the same on each of them; no gradient passes. Every process must call it."""
    total = tensor.detach()
    if process_count() > 1:
        total = total.clone()
        distributed.all_reduce(total)
    return total


def agreed(work: Callable[[], Any]) -> Any:
    """Run `work` on every process; returns what the first one got, as a string when there are several.

    If it fails anywhere, the error (of the same class, if it is one of ours) is raised everywhere.
    """
    if process_count() == 1:
        return work()
    value, failure = None, None
    try:
        value = work()
    except Exception as error:
        failure = error
    mine = (None if value is None else str(value), None if failure is None else (type(failure).__name__, str(failure)))
    reports: list[Any] = [None] * process_count()
    distributed.all_gather_object(reports, mine)
    if failure is not None:
        raise failure
    for _, theirs in reports:
        if theirs is not None:
            kind = getattr(errors, theirs[0], CM3Error)
            raise kind(theirs[1])
    return reports[0][0]


def on_main_process(work: Callable[[], Any]) -> None:
    """Run `work` on the first process while the others wait for it."""
    agreed(lambda: work() if is_main_process() else None)
