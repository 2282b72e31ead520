"""How a benchmark measures: ours and the peer in turns, the median of each, one JSON object per row.

row             what was measured          ours, peer     medians, in `unit`
ratio           how many times ours is better (time: peer / ours)
limit_fraction  share of the physical limit that ours reaches, or null where none was measured
gate            "ok" when both gave the same result, otherwise why not

A row of a study over seeds adds `interval` (95 %, of the difference ours - peer), `by_seed` and `tokens` (seen by each run); a
row of several rounds may add `spread`, their smallest and largest ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NotRequired, TypedDict


class Row(TypedDict):
    """One line of a benchmark; see the module text."""

    row: str
    ours: float
    peer: float
    ratio: float
    unit: str
    limit_fraction: float | None
    gate: str
    interval: NotRequired[list[float]]
    by_seed: NotRequired[list[float]]
    spread: NotRequired[list[float]]
    tokens: NotRequired[int]


def interleaved(
    ours: Callable[[], Any], peer: Callable[[], Any], repeats: int = 9, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Median seconds of both, run in turns after one warm-up each, so that a noisy machine troubles both alike.

    `clock=time.process_time` counts the processor time of this process: what work on one thread takes on a machine that is busy
    with other things, too.
    """
    ours(), peer()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for action, collected in ((ours, times[0]), (peer, times[1])):
            started = clock()
            action()
            collected.append(clock() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def time_row(name: str, seconds: tuple[float, float], gate: str, limit_fraction: float | None = None) -> Row:
    """A row of times in milliseconds; the ratio says how many times faster ours is."""
    ours, peer = seconds
    return Row(
        row=name,
        ours=round(ours * 1e3, 4),
        peer=round(peer * 1e3, 4),
        ratio=round(peer / ours, 3),
        unit="ms",
        limit_fraction=limit_fraction,
        gate=gate,
    )


def peak_mib(action: Callable[[], Any]) -> float:
    """The most memory, in MiB, that was allocated at once while `action` ran."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        action()
    total = peak = 0
    for event in recorded.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak / 2**20


def report(rows: Callable[..., Iterable[Row]], description: str, **options: str) -> None:
    """Run a benchmark as a command: a table, or one JSON object per line with `--json`.

    options: further options of the command with their defaults; their values are handed to `rows`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object per row")
    for name, default in options.items():
        parser.add_argument(f"--{name}", default=default, help=f"(default: {default})")
    values = vars(parser.parse_args())
    as_json = values.pop("json")
    for row in _checked(rows(**values)):
        limit = "" if row["limit_fraction"] is None else f"  {row['limit_fraction']:.0%} of the limit"
        figures = f"{row['ours']:>10.3f} {row['peer']:>10.3f} {row['unit']:<6} ×{row['ratio']:.2f}{limit}"
        text = f"{row['row']:<58} {figures}  {row['gate']}"
        print(json.dumps(row) if as_json else text, flush=True)


def _checked(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        if row["ours"] <= 0:
            raise ValueError(f"row {row['row']!r} measured nothing")
        yield row
