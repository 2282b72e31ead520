"""The quickstart itself: run the road, evaluate the model, write `result.json` and the report beside the model folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from cm3.core import artefact
from cm3.core.runfile import write_resolved
from cm3.quickstart.config import REFERENCE_MINUTES, QuickstartConfig
from cm3.quickstart.road import stages_of
from cm3.quickstart.settings import Places, Settings, settings_for
from cm3.quickstart.stages import Stage, StageRecord, run_stages
from cm3.quickstart.story import Story
from cm3.train.runlock import run_lock

RESULT_FILE, REPORT_FILE = "result.json", "index.html"


def run_quickstart(config: QuickstartConfig, announce: Callable[[str], None]) -> dict[str, Any]:
    """Run every stage that does not stand, then evaluate and report; returns what `result.json` holds.

    announce gets a line for each stage. Raises what the stages raise; what was finished stands, and the same call goes on.
    Raises `RunLockedError` when another process works in the same folder.
    """
    places = Places(config.out)
    settings = settings_for(config, places)
    stages = stages_of(config, settings, places)
    records: dict[str, StageRecord] = {}
    stages.append(_evaluation_stage(config, settings, places, records))
    with run_lock(config.out):
        artefact.sweep(config.out)
        write_resolved(config, config.out)
        run_stages(stages, config.out / "stages", announce, records)
        result = {**artefact.read_json(places.evaluation / RESULT_FILE), "stages": stage_figures(records)}
        artefact.write_json(config.out / RESULT_FILE, result)
        artefact.write_bytes(config.out / REPORT_FILE, (places.evaluation / REPORT_FILE).read_bytes())
    return result


def _evaluation_stage(config: QuickstartConfig, settings: Settings, places: Places, records: Mapping[str, StageRecord]) -> Stage:
    """The last stage; it reads the records of the stages before it for the page."""
    return Stage(
        "evaluation",
        places.evaluation,
        [places.model, places.data],
        {"held_out": config.held_out, "seed": config.seed},
        lambda: make_evaluation(config, settings, places, records),
        "measure the model on held-out data and write the report",
    )


def make_evaluation(config: QuickstartConfig, settings: Settings, places: Places, records: Mapping[str, StageRecord]) -> None:
    """Measure, show, and write `result.json` and `index.html` as one artefact."""
    from cm3.quickstart.evaluation import tell_story
    from cm3.quickstart.report import render_report

    story = tell_story(config, settings, places, stage_figures(records))
    with artefact.writing(places.evaluation, "evaluation") as folder:
        artefact.write_json(folder / RESULT_FILE, result_of(story))
        artefact.write_text(folder / REPORT_FILE, render_report(story))


def result_of(story: Story) -> dict[str, Any]:
    """The figures of a story as the values of `result.json`."""
    tasks = {name: asdict(score) for name, score in story.tasks.items()}
    result: dict[str, Any] = {"tasks": tasks, "versions": dict(story.versions)}
    return {**result, "real": dict(story.real)} if story.real else result


def stage_figures(records: Mapping[str, StageRecord]) -> dict[str, dict[str, float]]:
    """Seconds and peak memory by stage."""
    return {name: {"seconds": record.seconds, "peak_memory_bytes": record.peak_memory_bytes} for name, record in records.items()}


def command_of(config: QuickstartConfig) -> str:
    """How to run this quickstart again."""
    parts = ["cm3 quickstart", f"--out {config.out}"]
    if config.minutes != REFERENCE_MINUTES:
        parts.append(f"--minutes {config.minutes:g}")
    if config.data is not None:
        parts.append(f"--data {config.data}")
    if config.seed:
        parts.append(f"--seed {config.seed}")
    return " ".join(parts)
