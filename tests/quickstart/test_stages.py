"""Stages run once, are skipped while their result stands, and run again when anything they depend on changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cm3.core import artefact
from cm3.quickstart.stages import Stage, StageRecord, peak_memory_bytes, run_stages


class Road:
    """Two stages, the second reading the first; counts what ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made, self.settings = folder, [], {"first": 1, "second": 1}

    def make(self, name: str, text: str) -> Callable[[], None]:
        def run() -> None:
            self.made.append(name)
            with artefact.writing(self.folder / name, kind="sample") as folder:
                (folder / "a.txt").write_text(text)

        return run

    def run(self) -> tuple[list[str], dict[str, StageRecord]]:
        self.made = []
        first, second = self.folder / "first", self.folder / "second"
        stages = [
            Stage("first", first, [], self.settings["first"], self.make("first", f"{self.settings['first']}"), "do the first"),
            Stage("second", second, [first], self.settings["second"], self.make("second", "constant"), "do the second"),
        ]
        records: dict[str, StageRecord] = {}
        self.lines: list[Any] = []
        run_stages(stages, self.folder / "stages", self.lines.append, records)
        return self.made, records


@pytest.fixture
def road(tmp_path: Path) -> Road:
    return Road(tmp_path)


def test_second_run_does_nothing(road: Road) -> None:
    assert road.run()[0] == ["first", "second"]
    made, records = road.run()
    assert made == []
    assert list(records) == ["first", "second"]
    assert all("stands" in line for line in road.lines)


def test_changed_settings_run_the_stage_and_its_readers(road: Road) -> None:
    road.run()
    road.settings["first"] = 2
    assert road.run()[0] == ["first", "second"]
    road.settings["second"] = 2
    assert road.run()[0] == ["second"]


def test_a_damaged_result_is_made_again_and_equal_bytes_keep_the_readers(road: Road) -> None:
    road.run()
    (road.folder / "first" / "a.txt").write_text("X")
    assert road.run()[0] == ["first"]  # the same bytes come out: what was made from them still stands


def test_a_missing_or_broken_record_runs_the_stage(road: Road) -> None:
    road.run()
    (road.folder / "stages" / "second.json").write_text("{")
    assert road.run()[0] == ["second"]
    (road.folder / "stages" / "second.json").unlink()
    assert road.run()[0] == ["second"]


def test_a_failing_stage_keeps_what_stands(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, text: str) -> Callable[[], None]:
        def run() -> None:
            raise KeyboardInterrupt

        return run if name == "second" else Road.make(road, name, text)

    monkeypatch.setattr(road, "make", fail)
    with pytest.raises(KeyboardInterrupt):
        road.run()
    monkeypatch.undo()
    assert road.run()[0] == ["second"]


def test_peak_memory_is_that_of_this_process() -> None:
    before = peak_memory_bytes()
    block = bytearray(64 << 20)
    assert peak_memory_bytes() >= before
    assert len(block) < peak_memory_bytes() < 1 << 40
