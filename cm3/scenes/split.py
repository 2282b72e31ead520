"""Which combinations never occur in training, so that the test measures composition and not memory.

Two fixed sets are held out, by rule and by table, independent of any seed:

- 20 of the 216 (shape, color, cell) triples: at most one cell for each shape and color, spread over all of them;
- 12 (object, relation, object) triples, an object meaning its shape and color: each of the 24 kinds of object is in
  exactly one. "right of" and "below" are "left of" and "above" read from the other side, so holding out one holds out both.

A training scene has none of them; a test scene has at least one. Every shape, color, cell, size, background and relation
alone is seen in training.
"""

from __future__ import annotations

from itertools import permutations, product
from typing import Literal

from cm3.scenes.world import COLORS, GRID, SHAPES, Cell, Scene, SceneObject, holds

Split = Literal["train", "test", "any"]
Kind = tuple[str, str]  # (shape, color)


def _held_out_places() -> frozenset[tuple[str, str, Cell]]:
    """Diagonals through the table of shapes, colors and cells: about one triple in eleven."""
    table = product(enumerate(SHAPES), enumerate(COLORS), range(GRID * GRID))
    return frozenset(
        (shape, color, divmod(cell, GRID)) for (i, shape), (j, color), cell in table if (3 * i + 5 * j + cell) % 11 == 0
    )


HELD_OUT_PLACES = _held_out_places()
HELD_OUT_RELATIONS: frozenset[tuple[Kind, str, Kind]] = frozenset(
    {
        (("circle", "red"), "left of", ("square", "blue")),
        (("triangle", "green"), "left of", ("diamond", "yellow")),
        (("square", "purple"), "left of", ("circle", "orange")),
        (("diamond", "blue"), "left of", ("triangle", "red")),
        (("circle", "yellow"), "left of", ("diamond", "green")),
        (("triangle", "orange"), "left of", ("square", "red")),
        (("circle", "blue"), "above", ("triangle", "purple")),
        (("square", "green"), "above", ("diamond", "orange")),
        (("triangle", "yellow"), "above", ("circle", "purple")),
        (("diamond", "red"), "above", ("square", "yellow")),
        (("square", "orange"), "above", ("triangle", "blue")),
        (("diamond", "purple"), "above", ("circle", "green")),
    }
)


def held_out_reasons(scene: Scene) -> list[str]:
    """Every held-out combination in the scene, in words; empty for a scene that training may show."""
    places = [f"{item.color} {item.shape} at {item.position}" for item in scene.objects if _place(item) in HELD_OUT_PLACES]
    relations = [
        f"{first.color} {first.shape} {relation} {second.color} {second.shape}"
        for first, relation, second in _held_out_relations(scene)
    ]
    return places + relations


def is_held_out(scene: Scene) -> bool:
    """Whether the scene has at least one held-out combination: then it belongs to the test, never to training."""
    return any(_place(item) in HELD_OUT_PLACES for item in scene.objects) or bool(_held_out_relations(scene))


def belongs(scene: Scene, split: Split) -> bool:
    """Whether the scene may occur in `split`: "train", "test", or "any"."""
    return split == "any" or is_held_out(scene) == (split == "test")


def _place(item: SceneObject) -> tuple[str, str, Cell]:
    return item.shape, item.color, item.cell


def is_held_out_relation(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """Whether the triple, read from either side, is held out; says nothing about where the two objects stand."""
    if relation in ("right of", "below"):
        first, second, relation = second, first, {"right of": "left of", "below": "above"}[relation]
    return ((first.shape, first.color), relation, (second.shape, second.color)) in HELD_OUT_RELATIONS


def _held_out_relations(scene: Scene) -> list[tuple[SceneObject, str, SceneObject]]:
    return [
        (first, relation, second)
        for first, second in permutations(scene.objects, 2)
        for relation in ("left of", "above")
        if is_held_out_relation(first, relation, second) and holds(first, relation, second)
    ]
