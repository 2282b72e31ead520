"""Words about scenes: captions that state all or part of a scene, and questions with exact answers.

A caption's kind says how much it states (`CAPTION_KINDS`):

    full        background, and size, color, shape and position of every object: determines the scene
    attributes  background, and size, color and shape of every object
    relation    two objects, one "left of", "right of", "above" or "below" the other
    count       the background and how many objects of each shape there are

Wordings and the order of the objects vary; words are few (about 60) and plain. `cm3.scenes.parse` reads the captions back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from cm3.scenes.sampling import pick
from cm3.scenes.world import RELATIONS, Scene, SceneObject, holds, join_words, position_phrase, with_article

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTION_KINDS = ("full", "attributes", "relation", "count")


@dataclass(frozen=True)
class Caption:
    """A text about a scene; `kind` is one of `CAPTION_KINDS`."""

    text: str
    kind: str


def caption(scene: Scene, rng: np.random.Generator, kind: str = "full") -> Caption:
    """A caption of `kind` in a random wording.

    A scene in which no object can be named in relation to another gets an "attributes" caption instead of a "relation"
    one; the returned kind says so.
    """
    if kind == "full":
        return Caption(_full(scene, rng), kind)
    if kind == "count":
        return Caption(_count(scene, rng), kind)
    related = related_pairs(scene) if kind == "relation" else []
    if related:
        return Caption(_relation(scene, rng, *pick(rng, related)), "relation")
    return Caption(_attributes(scene, rng), "attributes")


def related_pairs(scene: Scene) -> list[tuple[SceneObject, str, SceneObject]]:
    """All (object, relation, object) that hold between objects which their color and shape single out."""
    kinds = Counter((item.color, item.shape) for item in scene.objects)
    unique = [item for item in scene.objects if kinds[item.color, item.shape] == 1]
    return [
        (first, relation, second)
        for first, second in permutations(unique, 2)
        for relation in RELATIONS
        if holds(first, relation, second)
    ]


def plural(shape: str, count: int) -> str:
    """The number and the shape: "one circle", "two circles"."""
    return f"{NUMBERS[count]} {shape}{'' if count == 1 else 's'}"


def _full(scene: Scene, rng: np.random.Generator) -> str:
    """The objects in any order (what comes next cannot be told from the places alone); four wordings, the plainest half of
    the time."""
    wording = int(rng.integers(6))
    objects = [scene.objects[index] for index in rng.permutation(len(scene.objects))]
    if not objects or wording < 3:
        return _sentence(objects, scene.background)
    if wording == 3:
        return f"on a {scene.background} background, {_listing(objects)}"
    if wording == 4:
        parts = [f"{item.describe()} {item.position}" for item in objects]
        return f"{scene.background} background: {', '.join(parts)}"
    parts = [f"{position_phrase(item.cell)} {with_article(item.describe())}" for item in objects]
    return f"{join_words(parts)} on {scene.background}"


def _sentence(objects: Sequence[SceneObject], background: str) -> str:
    return f"{_listing(objects) or 'nothing'} on a {background} background"


def _listing(objects: Sequence[SceneObject]) -> str:
    return join_words([f"{with_article(item.describe())} {position_phrase(item.cell)}" for item in objects])


def _attributes(scene: Scene, rng: np.random.Generator) -> str:
    order = rng.permutation(len(scene.objects))
    named = join_words([with_article(scene.objects[index].describe()) for index in order]) or "nothing"
    return pick(rng, (f"{named} on a {scene.background} background", f"{scene.background} background with {named}"))


def _count(scene: Scene, rng: np.random.Generator) -> str:
    shapes = Counter(item.shape for item in scene.objects)
    by_shape = join_words([plural(shape, count) for shape, count in sorted(shapes.items())]) or "nothing"
    total = plural("object", len(scene.objects))
    counted = pick(rng, (by_shape, total, f"{total}: {by_shape}"))
    return f"{counted} on a {scene.background} background"


def _relation(scene: Scene, rng: np.random.Generator, first: SceneObject, relation: str, second: SceneObject) -> str:
    """With sizes half of the time, with the background half of the time."""
    sized = rng.random() < 0.5
    names = [item.describe() if sized else f"{item.color} {item.shape}" for item in (first, second)]
    text = f"{with_article(names[0])} {relation} {with_article(names[1])}"
    return f"{text} on a {scene.background} background" if rng.random() < 0.5 else text
