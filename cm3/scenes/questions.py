"""Questions about a scene, each with the one exact answer of one or two words, and what leads to it.

Kinds (`QUESTION_KINDS`): count, color, shape, existence (yes or no), position, relation (yes or no). Yes and no are equally
likely whatever the scene. `names_of` finds the phrases that single out one object; edits use it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from cm3.scenes.language import NUMBERS
from cm3.scenes.sampling import pick
from cm3.scenes.split import is_held_out_relation
from cm3.scenes.world import COLORS, RELATIONS, SHAPES, Scene, SceneObject, holds, join_words, position_phrase, with_article

QUESTION_KINDS = ("count", "color", "shape", "existence", "position", "relation")
YES_OR_NO = ("existence", "relation")

Form = tuple[str, ...]
FORMS: tuple[Form, ...] = (
    ("shape",),
    ("color",),
    ("color", "shape"),
    ("size", "shape"),
    ("size", "color", "shape"),
    ("position",),
    ("shape", "position"),
    ("color", "shape", "position"),
    ("size", "color", "shape", "position"),
)


@dataclass(frozen=True)
class Question:
    """A question of `kind` (one of `QUESTION_KINDS`) and its answer, in lower case and without punctuation.

    explanation: what one sees on the way to the answer; empty where the question itself says where to look.
    """

    kind: str
    question: str
    answer: str
    explanation: str = ""


def questions(scene: Scene, rng: np.random.Generator, kinds: Sequence[str] = QUESTION_KINDS) -> list[Question]:
    """One question of each of `kinds` that the scene allows, in their order.

    Count and existence are always there. The others need an object (or two, for a relation) that words can single out.
    """
    asked = (_MAKERS[kind](scene, rng) for kind in kinds)
    return [question for question in asked if question is not None]


def names_of(scene: Scene, item: SceneObject, forms: Iterable[Form] = FORMS) -> list[str]:
    """The phrases of `forms` that single out `item` in the scene: "the circle", "the red object at the top left"."""
    return [name_by(item, form) for form in forms if _singles_out(scene, item, form)]


def name_by(item: SceneObject, form: Form) -> str:
    """ "the" and the attributes of `form`: "the large circle", "the object at the middle center"."""
    words = [str(getattr(item, attribute)) for attribute in ("size", "color") if attribute in form]
    noun = item.shape if "shape" in form else "object"
    place = [position_phrase(item.cell)] if "position" in form else []
    return " ".join(["the", *words, noun, *place])


def _singles_out(scene: Scene, item: SceneObject, form: Form) -> bool:
    alike = [other for other in scene.objects if all(getattr(other, name) == getattr(item, name) for name in form)]
    return alike == [item]


def _ask(scene: Scene, rng: np.random.Generator, hidden: str) -> tuple[SceneObject, str] | None:
    """A random object that can be named without the attribute `hidden`, and such a name."""
    forms = [form for form in FORMS if hidden not in form]
    named = [(item, names) for item in scene.objects if (names := names_of(scene, item, forms))]
    if not named:
        return None
    item, names = pick(rng, named)
    return item, pick(rng, names)


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    """All objects, those of a shape, or those of a color; two times out of three of one that is there."""
    of = pick(rng, ("object", "shape", "color"))
    present = bool(scene.objects) and rng.random() < 2 / 3
    if of == "object":
        seen = [f"{item.color} {item.shape}" for item in scene.objects]
        return Question("count", "how many objects are there?", NUMBERS[len(scene.objects)], join_words(seen) or "nothing")
    value = getattr(pick(rng, scene.objects), of) if present else pick(rng, SHAPES if of == "shape" else tuple(COLORS))
    seen = [item.color if of == "shape" else item.shape for item in scene.objects if getattr(item, of) == value]
    what = f"{value}s" if of == "shape" else f"{value} objects"
    return Question("count", f"how many {what} are there?", NUMBERS[len(seen)], f"{value}: {join_words(seen) or 'nothing'}")


def _color(scene: Scene, rng: np.random.Generator) -> Question | None:
    """The color of the background one time out of four, of an object otherwise."""
    if rng.random() < 0.25:
        return Question("color", "what color is the background?", scene.background)
    named = _ask(scene, rng, hidden="color")
    return named and Question("color", f"what color is {named[1]}?", named[0].color)


def _shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    named = _ask(scene, rng, hidden="shape")
    return named and Question("shape", f"what shape is {named[1]}?", named[0].shape)


def _position(scene: Scene, rng: np.random.Generator) -> Question | None:
    named = _ask(scene, rng, hidden="position")
    return named and Question("position", f"where is {named[1]}?", named[0].position, _seen(named[0]))


def _existence(scene: Scene, rng: np.random.Generator) -> Question:
    """ "No" is asked about an object that differs from one in the scene by its color or its shape alone."""
    kinds = {(item.color, item.shape) for item in scene.objects}
    if kinds and rng.random() < 0.5:
        answer, (color, shape) = "yes", pick(rng, sorted(kinds))
    else:
        near = [(color, shape) for color in COLORS for shape in SHAPES if _differ_in_one(kinds, color, shape)]
        answer, (color, shape) = "no", pick(rng, near or [("red", "circle")])
    alike = [item.shape for item in scene.objects if item.color == color]
    if answer == "yes":
        seen = f"{color} {shape}"
    else:  # what was found, then what it is not: a word that stands in the question, or does not, is easier than two that differ
        seen = f"{color} {alike[0]}, not {shape}" if alike else f"nothing {color}"
    return Question("existence", f"is there {with_article(f'{color} {shape}')}?", answer, seen)


def _differ_in_one(kinds: set[tuple[str, str]], color: str, shape: str) -> bool:
    close = any((color == known[0]) != (shape == known[1]) for known in kinds)
    return close and (color, shape) not in kinds


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """ "No" is never asked with a held-out relation: training would learn the answer without ever seeing one."""
    truth = bool(rng.random() < 0.5)
    named = [(item, name) for item in scene.objects for name in names_of(scene, item, [("color", "shape")])]
    asked = [
        (f"is {first_name} {relation} {second_name}?", f"{_seen(first)}, {_seen(second)}")
        for (first, first_name), (second, second_name) in permutations(named, 2)
        for relation in RELATIONS
        if holds(first, relation, second) == truth and (truth or not is_held_out_relation(first, relation, second))
    ]
    if not asked:
        return None
    question, seen = pick(rng, asked)
    return Question("relation", question, "yes" if truth else "no", seen)


def _seen(item: SceneObject) -> str:
    """What one sees of an object that is looked for: its place comes right after what it was found by."""
    return f"{item.shape} {item.color} {item.position}"


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "count": _count,
    "color": _color,
    "shape": _shape,
    "existence": _existence,
    "position": _position,
    "relation": _relation,
}
