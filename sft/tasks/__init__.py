"""Tasks: one file each, listed here. A file holds all of its task: prompts, training examples, what evaluation asks.

    text_to_image   caption                     ⟶ image        the same document as in pretraining
    captioning      image, "describe"           ⟶ caption
    vqa             question, image             ⟶ answer       further questions follow as further turns
    editing         instruction, image          ⟶ image
    infilling       caption, image with masks   ⟶ the masked parts

A task is an immutable configuration with methods (`sft.tasks.task.Task`); `make_task` makes one from a name and options.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cm3.core.artefact import read_json
from cm3.core.errors import ArtefactError, UsageError
from cm3.core.registry import Registry
from cm3.core.runfile import validate
from sft.tasks.task import Task

__all__ = ["TASKS", "TASKS_FILE", "default_tasks", "load_tasks", "make_task", "tasks_json"]

TASKS_FILE = "tasks.json"

TASKS = Registry(
    "task",
    {
        "text_to_image": "sft.tasks.text_to_image:TextToImage",
        "captioning": "sft.tasks.captioning:Captioning",
        "vqa": "sft.tasks.vqa:VQA",
        "editing": "sft.tasks.editing:Editing",
        "infilling": "sft.tasks.infilling:Infilling",
    },
)


def make_task(name: str, options: Mapping[str, Any] | None = None) -> Task:
    """The task registered as `name` with `options` in place of its defaults.

    Raises `UsageError` for an unknown task or option (with the nearest ones) and for a wrong value.
    """
    return validate(TASKS.get(name), dict(options or {}), f"task {name}")


def default_tasks() -> dict[str, Task]:
    """Every registered task with its default options, by name."""
    return {name: make_task(name) for name in TASKS.names()}


def tasks_json(tasks: Mapping[str, Task]) -> dict[str, Any]:
    """The options of `tasks` as the value of `tasks.json`; `load_tasks` reads it."""
    return {name: task.model_dump(mode="json") for name, task in tasks.items()}


def load_tasks(folder: Path) -> dict[str, Task]:
    """The tasks as the model in `folder` was trained on them; those that its `tasks.json` does not name have their defaults.

    Raises `ArtefactError` for a file that is damaged or of another version.
    """
    path = folder / TASKS_FILE
    options = read_json(path) if path.exists() else {}
    try:
        return {name: make_task(name, options.get(name)) for name in {**dict.fromkeys(TASKS.names()), **options}}
    except (UsageError, AttributeError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path} does not describe tasks of this version: {error}") from None
