"""Stages: pieces of a long road that are done once, remembered, and skipped while what they made still stands.

A stage makes one artefact folder from others. `DIR/stages/NAME.json` remembers the key it was made under (its settings and
the fingerprints of what it read) and the fingerprint of what it made. A stage stands when that record matches and every
byte of its folder does; otherwise it runs again, and so does whatever reads it.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3.core import artefact
from cm3.core.errors import ArtefactError


@dataclass(frozen=True)
class Stage:
    """One stage.

    name: shown to the user; out: the artefact folder it makes; inputs: artefact folders it reads; settings: JSON values it
    depends on; make: does the work and leaves `out` behind; description: one line on what is happening.
    """

    name: str
    out: Path
    inputs: Sequence[Path]
    settings: Any
    make: Callable[[], None]
    description: str


@dataclass(frozen=True)
class StageRecord:
    """What a finished stage left: its key, the fingerprint of its folder, seconds of wall time, peak resident bytes."""

    key: str
    fingerprint: str
    seconds: float
    peak_memory_bytes: int


def run_stages(stages: Sequence[Stage], folder: Path, announce: Callable[[str], None], records: dict[str, StageRecord]) -> None:
    """Run the stages that do not stand, in order, and put every stage's record into `records` as soon as it is there.

    `folder` keeps the records; `announce` gets a line for each stage.
    """
    with artefact.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        key = stage_key(stage)
        record = _standing(stage, key, folder)
        if record is None:
            announce(f"{title}: {stage.description}")
            record = _run(stage, key)
            artefact.write_json(folder / f"{stage.name}.json", vars(record))
            announce(f"{title}: done in {record.seconds:.0f} s")
        else:
            announce(f"{title}: stands (made in {record.seconds:.0f} s)")
        records[stage.name] = record


def stage_key(stage: Stage) -> str:
    """SHA-256 (hex) over the settings of a stage and the fingerprints of its inputs."""
    inputs = [artefact.fingerprint(path) for path in stage.inputs]
    text = json.dumps({"settings": stage.settings, "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _standing(stage: Stage, key: str, folder: Path) -> StageRecord | None:
    """The record of a stage that needs no work, or None. A damaged folder counts as work to do."""
    try:
        record = StageRecord(**artefact.read_json(folder / f"{stage.name}.json"))
        stands = record.key == key and artefact.verify(stage.out).fingerprint == record.fingerprint
        return record if stands else None
    except (ArtefactError, TypeError):
        return None


def _run(stage: Stage, key: str) -> StageRecord:
    _reset_peak_memory()
    started = time.monotonic()
    stage.make()
    seconds = round(time.monotonic() - started, 2)
    return StageRecord(key, artefact.fingerprint(stage.out), seconds, peak_memory_bytes())


def _reset_peak_memory() -> None:
    """Start the kernel's high-water mark of resident memory anew (Linux only; elsewhere the peak is that of the process)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> int:
    """The most resident memory this process has had (since the last reset, where the kernel can tell)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
