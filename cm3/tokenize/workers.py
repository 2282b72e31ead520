"""`tokenize`: the parts of a source made by several processes, what stands is kept, then merged into one folder of shards.

Part k belongs to worker k modulo the number of workers; since the bytes of a part depend on nothing but its records, the shards
are the same for any number of workers, and after any interruption. The parts lie in OUT-parts until the shards are there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

from cm3.core import artefact, errors
from cm3.core.errors import CM3Error
from cm3.core.progress import Progress, progress
from cm3.core.storage import sibling
from cm3.sequences.shards import KIND as SHARDS_KIND
from cm3.tokenize.merging import merge
from cm3.tokenize.parts import TokenizeJob, count_records, is_finished, make_job, make_parts
from cm3.train.runlock import run_lock

_LOOK_S = 0.5  # how often the parent looks whether a silent worker still lives


def tokenize(
    source: Path | str,
    tokenizer: Path,
    image_tokenizer: Path,
    out: Path,
    format: str | None = None,
    budget: float = 0.01,
    workers: int = 0,
) -> dict[str, Any]:
    """Tokenize every document of `source` and write token shards to `out`; returns the account of the records.

    workers: processes that encode (0: one per core); never more than there are parts of 1024 records. The account is
    {"seen", "ok", "rejected": {reason: n}, "problems": [...], "tokens": n}. What an interrupted call has finished is used by the
    next one. Raises `BudgetError` when more than `budget` of the records were rejected (nothing is written then),
    `ArtefactError` when the tokenizers do not belong together, `RunLockedError` when another process tokenizes to `out`.
    """
    out = Path(out)
    artefact.require_replaceable(out, SHARDS_KIND)
    job = make_job(source, tokenizer, image_tokenizer, parts_folder(out), format)
    with run_lock(job.parts):
        key, records = job.key, count_records(job)
        count = -(-records // job.records_per_part)
        artefact.sweep(job.parts)
        missing = [number for number in range(count) if not is_finished(job, number, key)]
        done = records - min(len(missing) * job.records_per_part, records)
        with progress(records, "tokenizing", unit="record", initial=done) as bar:
            if missing:
                make_missing(job, key, missing, workers or available_cores(), bar)
        return merge(job, out, count, budget)


def parts_folder(out: Path) -> Path:
    """Where the parts of the shards `out` lie until they are merged."""
    return sibling(out, suffix="-parts")


def available_cores() -> int:
    """How many processes of ours can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_missing(job: TokenizeJob, key: str, missing: list[int], workers: int, bar: Progress) -> None:
    """Make the parts `missing`, in this process or in several."""
    workers = min(workers, len(missing))
    if workers == 1:
        for count in make_parts(job, key, frozenset(missing)):
            bar.advance(count)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit the threads of torch
    queue: Queue[tuple[str, Any]] = context.Queue()
    shares = [frozenset(missing[index::workers]) for index in range(workers)]
    with _running([context.Process(target=_work, args=(job, key, share, queue)) for share in shares]) as processes:
        left = workers
        while left:
            try:
                kind, value = queue.get(timeout=_LOOK_S)
            except Empty:
                _raise_if_dead(processes)
                continue
            if kind == "part":
                bar.advance(value)
            elif kind == "done":
                left -= 1
            else:
                raise getattr(errors, kind, CM3Error)(value)


def _work(job: TokenizeJob, key: str, share: frozenset[int], queue: Queue[tuple[str, Any]]) -> None:
    """A worker: its share of the parts, then "done"; an error is sent as (class, message)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    try:
        for count in make_parts(job, key, share):
            queue.put(("part", count))
        queue.put(("done", None))
    except CM3Error as error:
        kind = next(base.__name__ for base in type(error).__mro__ if hasattr(errors, base.__name__))
        queue.put((kind, str(error)))
    except Exception as error:
        queue.put(("CM3Error", f"a worker failed: {type(error).__name__}: {error}"))


@contextmanager
def _running(processes: list[BaseProcess]) -> Iterator[list[BaseProcess]]:
    """Start the processes for the block; whatever ends it ends them too (parts are whole or not there)."""
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _raise_if_dead(processes: list[BaseProcess]) -> None:
    for process in processes:
        if process.exitcode not in (None, 0):
            raise CM3Error(
                f"a tokenizing worker died (exit code {process.exitcode}; -9 is mostly the system short of memory); "
                "what is finished stands, run again with fewer --workers"
            )
