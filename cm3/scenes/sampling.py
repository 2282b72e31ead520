"""Drawing random scenes that belong to a split.

The number of objects is drawn first and kept, so that the split does not change how many objects scenes have. Scenes of the
test split with more than one object are built around a held-out relation half of the time; the rest are drawn until
they have a held-out combination of any sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from cm3.scenes.render import slack
from cm3.scenes.split import HELD_OUT_RELATIONS, Kind, Split, belongs
from cm3.scenes.world import BACKGROUNDS, COLORS, GRID, SHAPES, SIZES, Cell, Scene, SceneObject, WorldConfig

Item = TypeVar("Item")

_CELLS: tuple[Cell, ...] = tuple(divmod(index, GRID) for index in range(GRID * GRID))
_COLOR_NAMES = tuple(COLORS)
_BACKGROUND_NAMES = tuple(BACKGROUNDS)
_RELATION_TABLE = tuple(sorted(HELD_OUT_RELATIONS))


def sample_scene(rng: np.random.Generator, config: WorldConfig, split: Split = "train") -> Scene:
    """A random scene of `split` ("train", "test", "any"), with 1 to `config.max_objects` objects."""
    count = _sample_count(rng, config)
    relation = split == "test" and count > 1 and rng.random() < 0.5
    while True:
        if relation:
            objects = _objects_in_relation(rng, config, count)
        else:
            objects = [sample_object(rng, config, _CELLS[cell]) for cell in _draw_cells(rng, count)]
        scene = Scene(tuple(objects), pick(rng, _BACKGROUND_NAMES), sample_texture(rng, config))
        if belongs(scene, split):
            return scene


def sample_object(rng: np.random.Generator, config: WorldConfig, cell: Cell, kind: Kind | None = None) -> SceneObject:
    """A random object in `cell`; `kind` fixes its (shape, color)."""
    shape, color = kind or (pick(rng, SHAPES), pick(rng, _COLOR_NAMES))
    size = pick(rng, SIZES)
    return SceneObject(cell, shape, color, size, sample_offset(rng, config, size))


def sample_offset(rng: np.random.Generator, config: WorldConfig, size: str) -> tuple[int, int]:
    """A random shift (down, right) of an object of `size`, as far as `config.jitter` and its cell allow."""
    reach = min(config.jitter, slack(size, config.cell_size))
    if reach == 0:
        return 0, 0
    down, right = rng.integers(-reach, reach + 1, size=2)
    return int(down), int(right)


def sample_texture(rng: np.random.Generator, config: WorldConfig) -> int:
    """A seed for the background's texture; 0, and nothing drawn, when the world has none."""
    return int(rng.integers(1, 2**31)) if config.texture else 0


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of `items`, all equally likely."""
    return items[int(rng.integers(len(items)))]


def _draw_cells(rng: np.random.Generator, count: int) -> list[int]:
    """`count` different cell numbers, in random order."""
    return rng.permutation(GRID * GRID)[:count].tolist()


def _sample_count(rng: np.random.Generator, config: WorldConfig) -> int:
    return 1 + int(np.searchsorted(_count_steps(config), rng.random(), side="right"))


@lru_cache
def _count_steps(config: WorldConfig) -> np.ndarray:
    """Upper ends of the intervals of [0, 1) that stand for 1, 2, … objects; the last is left open."""
    weights = np.array(config.object_weights or (1.0,) * config.max_objects)
    return (np.cumsum(weights) / weights.sum())[:-1]


def _objects_in_relation(rng: np.random.Generator, config: WorldConfig, count: int) -> list[SceneObject]:
    """Two objects in a held-out relation, and `count` - 2 others, in different cells."""
    first, relation, second = pick(rng, _RELATION_TABLE)
    axis = 0 if relation == "above" else 1
    while True:
        here, there, *others = (_CELLS[cell] for cell in _draw_cells(rng, count))
        if here[axis] < there[axis]:
            pair = [sample_object(rng, config, here, first), sample_object(rng, config, there, second)]
            return pair + [sample_object(rng, config, cell) for cell in others]
