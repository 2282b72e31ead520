"""Exact judgement: scenes against scenes, scenes against captions, captions against scenes, answers against answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from cm3.scenes.language import NUMBERS
from cm3.scenes.parse import StatedObject, Statements, parse_caption
from cm3.scenes.world import RELATIONS, Cell, Scene, SceneObject, holds

_ATTRIBUTES = 4


@dataclass(frozen=True)
class SceneScore:
    """A predicted scene against its target.

    all         the same scene: background, and every object with size, color, shape and cell, none missing, none too many
    objects     share of the objects (of the scene that has more) found with size, color and shape, wherever they stand
    count       the right number of objects
    positions   cells that hold an object in both scenes, over cells that do in either
    background  the right background
    relations   share of the target's relations between neighboring kinds of objects that hold; None with fewer than two objects
    """

    all: bool
    objects: float
    count: bool
    positions: float
    background: bool
    relations: float | None


@dataclass(frozen=True)
class StatementScore:
    """A scene against what a caption states: `all` of it holds (jointly), or `fraction` of the single statements."""

    all: bool
    fraction: float


@dataclass(frozen=True)
class CaptionScore:
    """A caption against the scene it describes.

    attributes  share of size, color, shape and position right, over all objects of the scene or of the text, whichever has more
    exact       the text states the scene: all of it, and nothing else
    """

    attributes: float
    exact: bool


def score_scene(predicted: Scene, target: Scene) -> SceneScore:
    """Compare two scenes."""
    looks, wanted = (Counter(item.describe() for item in scene.objects) for scene in (predicted, target))
    cells, wanted_cells = ({item.cell for item in scene.objects} for scene in (predicted, target))
    return SceneScore(
        all=predicted == target,
        objects=_share((looks & wanted).total(), (looks | wanted).total()),
        count=len(predicted.objects) == len(target.objects),
        positions=_share(len(cells & wanted_cells), len(cells | wanted_cells)),
        background=predicted.background == target.background,
        relations=_relations(predicted, target),
    )


def score_statement(scene: Scene, caption: str) -> StatementScore:
    """Judge a scene by what a caption states, and no more.

    "a red circle left of a blue square" allows other objects and any background. A caption that names the background and
    relates nothing lists all objects: more of them are a fault. "two circles" means exactly two. A full caption holds for
    one scene only. Text outside the language never holds entirely.
    """
    stated = parse_caption(caption)
    checks = list(_checks(scene, stated))
    jointly = stated.clean and bool(checks) and all(checks) and _can_assign(scene, stated, ())
    return StatementScore(jointly, _share(sum(checks), len(checks)) if checks else 0.0)


def score_caption(text: str, scene: Scene) -> CaptionScore:
    """Judge a caption, written by a model, of `scene`."""
    stated = parse_caption(text)
    named = [item for item in stated.objects for _ in range(1 if item.count is None else min(item.count, 9))]
    most = max(len(named), len(scene.objects))
    right = _best_agreement(named, scene.objects)
    exact = stated.complete and len(named) == len(scene.objects) and right == _ATTRIBUTES * most
    return CaptionScore(_share(right, _ATTRIBUTES * most), exact and stated.background == scene.background)


def score_answer(answer: str, expected: str) -> bool:
    """Whether two answers are the same, apart from case, articles, punctuation, and digits for number words."""
    return normalize_answer(answer) == normalize_answer(expected)


def normalize_answer(answer: str) -> str:
    """ "The top-left." becomes "top left", "2" becomes "two"."""
    words = re.findall(r"[a-z]+|\d+", answer.lower())
    spelled = [NUMBERS[int(word)] if word.isdigit() and int(word) < len(NUMBERS) else word for word in words]
    kept = [word for word in spelled if word not in ("a", "an", "the", "in", "at")]
    return " ".join(kept)


def _share(part: float, whole: float) -> float:
    """`part` of `whole`; everything of nothing is 1."""
    return part / whole if whole else 1.0


def _relations(predicted: Scene, target: Scene) -> float | None:
    """Of the target's (object, relation, object) triples, objects told apart by size, color and shape, the share that holds."""
    wanted = _triples(target)
    if not wanted:
        return None
    return _share((wanted & _triples(predicted)).total(), wanted.total())


def _triples(scene: Scene) -> Counter[tuple[str, str, str]]:
    return Counter(
        (first.describe(), relation, second.describe())
        for first, second in permutations(scene.objects, 2)
        for relation in RELATIONS[::2]  # the other two are these, read from the other side
        if holds(first, relation, second)
    )


def _checks(scene: Scene, stated: Statements) -> Iterator[bool]:
    """Each statement of a caption on its own."""
    for item in stated.objects:
        found = sum(item.fits(candidate) for candidate in scene.objects)
        yield found == item.count if item.count is not None else found > 0
    for first, relation, second in stated.relations:
        pairs = permutations(scene.objects, 2)
        yield any(_related(stated, first, a, relation, b, second) for a, b in pairs)
    if stated.background is not None:
        yield scene.background == stated.background
    if stated.total is not None:
        yield len(scene.objects) == stated.total
    elif stated.closed:
        yield len(scene.objects) == sum(1 if item.count is None else item.count for item in stated.objects)


def _related(stated: Statements, first: int, a: SceneObject, relation: str, b: SceneObject, second: int) -> bool:
    return stated.objects[first].fits(a) and stated.objects[second].fits(b) and holds(a, relation, b)


def _can_assign(scene: Scene, stated: Statements, chosen: tuple[SceneObject | None, ...]) -> bool:
    """Whether the stated objects can all be different objects of the scene with all relations true; depth first."""
    index = len(chosen)
    for first, relation, second in stated.relations:
        if max(first, second) == index - 1 and not _holds_between(chosen[first], relation, chosen[second]):
            return False
    if index == len(stated.objects):
        return True
    item = stated.objects[index]
    if item.count is not None:  # judged by number, not by assignment
        return _can_assign(scene, stated, (*chosen, None))
    free = (candidate for candidate in scene.objects if item.fits(candidate) and not any(candidate is used for used in chosen))
    return any(_can_assign(scene, stated, (*chosen, candidate)) for candidate in free)


def _holds_between(first: SceneObject | None, relation: str, second: SceneObject | None) -> bool:
    """Relations of counted groups ("two circles left of …") are judged by `_checks` alone."""
    return first is None or second is None or holds(first, relation, second)


def _best_agreement(named: Sequence[StatedObject], objects: Sequence[SceneObject]) -> int:
    """Most attributes that agree under any pairing of the stated objects with the scene's, each used once.

    Sums over the stated objects in turn, keeping the best total for every set of scene objects already used.
    """
    best: dict[frozenset[Cell], int] = {frozenset(): 0}
    for stated in named:
        for used, total in list(best.items()):
            for item in objects:
                if item.cell not in used:
                    key = used | {item.cell}
                    best[key] = max(best.get(key, 0), total + stated.agreement(item))
    return max(best.values())
