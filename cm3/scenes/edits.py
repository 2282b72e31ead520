"""Edits: a scene before, an instruction in words, the scene after, and the region that changes.

Kinds (`EDIT_KINDS`): recolor, reshape, add, remove, move, background. An instruction names its object by color and shape,
and adds size and position only where they are needed, so that it has one meaning in its scene.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from cm3.scenes.questions import names_of
from cm3.scenes.sampling import pick, sample_object, sample_scene
from cm3.scenes.split import Split, belongs
from cm3.scenes.world import (
    BACKGROUNDS,
    COLORS,
    GRID,
    SHAPES,
    Cell,
    Scene,
    SceneObject,
    WorldConfig,
    position_phrase,
    with_article,
)

_NAMING = (("color", "shape"), ("size", "color", "shape"), ("size", "color", "shape", "position"))


@dataclass(frozen=True)
class Edit:
    """One edit. `mask` is (Y, X) bool: the cells whose content changes, or everything when the background does.

    Whole cells are marked, so that the mask does not betray the shape that the edit asks for.
    """

    kind: str
    before: Scene
    instruction: str
    after: Scene
    mask: np.ndarray


Change = tuple[str, Scene]  # instruction, scene after
Maker = Callable[[Scene, np.random.Generator, WorldConfig], Change]


def sample_edit(rng: np.random.Generator, config: WorldConfig, split: Split = "train", kind: str | None = None) -> Edit:
    """A random edit of `split`; `kind` is one of `EDIT_KINDS`, drawn equally often when None.

    In the training split neither scene has a held-out combination. In the test split the scene after has one: it is what a
    model must make. Every scene has one to `config.max_objects` objects.
    """
    kinds = EDIT_KINDS if config.max_objects > 1 else tuple(name for name in EDIT_KINDS if name not in ("add", "remove"))
    kind = kind or pick(rng, kinds)
    while True:
        before = sample_scene(rng, config, "train" if split == "train" else "any")
        if not _fits(kind, len(before.objects), config):
            continue
        instruction, after = _MAKERS[kind](before, rng, config)
        if belongs(after, split):
            return Edit(kind, before, instruction, after, changed_region(before, after, config))


def changed_region(before: Scene, after: Scene, config: WorldConfig) -> np.ndarray:
    """(Y, X) bool: the cells that differ; all true when the backgrounds do."""
    size = config.image_size
    if before.background != after.background:
        return np.ones((size, size), bool)
    cells = np.zeros((GRID, GRID), bool)
    for item in set(before.objects) ^ set(after.objects):
        cells[item.cell] = True
    return np.kron(cells, np.ones((config.cell_size, config.cell_size), bool))


def _fits(kind: str, count: int, config: WorldConfig) -> bool:
    """Whether a scene of `count` objects keeps one to `max_objects` of them under an edit of `kind`."""
    if kind == "add":
        return count < config.max_objects
    return count > 1 if kind == "remove" else True


def _recolor(scene: Scene, rng: np.random.Generator, config: WorldConfig) -> Change:
    item = pick(rng, scene.objects)
    color = pick(rng, [color for color in COLORS if color != item.color])
    name = names_of(scene, item, _NAMING)[0]
    instruction = pick(rng, (f"make {name} {color}", f"change the color of {name} to {color}"))
    return instruction, _swap(scene, item, replace(item, color=color))


def _reshape(scene: Scene, rng: np.random.Generator, config: WorldConfig) -> Change:
    item = pick(rng, scene.objects)
    shape = pick(rng, [shape for shape in SHAPES if shape != item.shape])
    name = names_of(scene, item, _NAMING)[0]
    instruction = pick(rng, (f"turn {name} into a {shape}", f"change the shape of {name} to a {shape}"))
    return instruction, _swap(scene, item, replace(item, shape=shape))


def _add(scene: Scene, rng: np.random.Generator, config: WorldConfig) -> Change:
    item = sample_object(rng, config, pick(rng, _free_cells(scene)))
    instruction = f"add {with_article(item.describe())} {position_phrase(item.cell)}"
    return instruction, _swap(scene, None, item)


def _remove(scene: Scene, rng: np.random.Generator, config: WorldConfig) -> Change:
    item = pick(rng, scene.objects)
    name = names_of(scene, item, _NAMING)[0]
    return pick(rng, (f"remove {name}", f"delete {name}")), _swap(scene, item, None)


def _move(scene: Scene, rng: np.random.Generator, config: WorldConfig) -> Change:
    item = pick(rng, scene.objects)
    cell = pick(rng, _free_cells(scene))
    name = names_of(scene, item, _NAMING)[0]
    where = position_phrase(cell).partition(" ")[2]
    instruction = pick(rng, (f"move {name} to {where}", f"shift {name} to {where}"))
    return instruction, _swap(scene, item, replace(item, cell=cell))


def _background(scene: Scene, rng: np.random.Generator, config: WorldConfig) -> Change:
    color = pick(rng, [color for color in BACKGROUNDS if color != scene.background])
    instruction = pick(rng, (f"make the background {color}", f"change the background to {color}"))
    return instruction, replace(scene, background=color)


def _free_cells(scene: Scene) -> list[Cell]:
    taken = {item.cell for item in scene.objects}
    return [cell for index in range(GRID * GRID) if (cell := divmod(index, GRID)) not in taken]


def _swap(scene: Scene, old: SceneObject | None, new: SceneObject | None) -> Scene:
    """The scene without `old` and with `new`."""
    kept = tuple(item for item in scene.objects if item is not old)
    return replace(scene, objects=kept + ((new,) if new is not None else ()))


_MAKERS: Mapping[str, Maker] = {
    "recolor": _recolor,
    "reshape": _reshape,
    "add": _add,
    "remove": _remove,
    "move": _move,
    "background": _background,
}
EDIT_KINDS = tuple(_MAKERS)
