"""Questions: answered by the scene alone, short, and not to be guessed from the words."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from cm3.scenes.language import NUMBERS
from cm3.scenes.questions import FORMS, QUESTION_KINDS, name_by, names_of, questions
from cm3.scenes.sampling import sample_scene
from cm3.scenes.split import is_held_out_relation
from cm3.scenes.world import BACKGROUNDS, COLORS, POSITIONS, SHAPES, Scene, SceneObject, WorldConfig, holds

CONFIG = WorldConfig()
CIRCLE = SceneObject((0, 0), "circle", "red", "large")
OTHER = SceneObject((2, 1), "circle", "blue", "large")
SCENE = Scene((CIRCLE, OTHER), "white")


def draw(count, split="any"):
    rng = np.random.default_rng(0)
    for _ in range(count):
        scene = sample_scene(rng, CONFIG, split)
        yield from ((scene, question) for question in questions(scene, rng))


def pointed_at(scene, phrase):
    """The objects that a phrase like "the small red circle at the top left" fits, found by its words alone."""
    words, _, place = phrase.partition(" at the ")
    wanted = [word for word in words.split() if word not in ("the", "object")]
    return [
        item
        for item in scene.objects
        if all(word in (item.shape, item.color, item.size) for word in wanted) and place in ("", item.position)
    ]


def test_answers_agree_with_an_independent_reading_of_the_question():
    for scene, asked in draw(300):
        text = asked.question.removesuffix("?")
        if text == "what color is the background":
            assert asked.answer == scene.background
        elif asked.kind in ("color", "shape"):
            (item,) = pointed_at(scene, text.split(" is ")[1])
            assert asked.answer == getattr(item, asked.kind)
        elif asked.kind == "position":
            (item,) = pointed_at(scene, text.removeprefix("where is "))
            assert asked.answer == item.position
        elif asked.kind == "existence":
            _, color, shape = text.removeprefix("is there ").split()
            present = any((item.color, item.shape) == (color, shape) for item in scene.objects)
            assert asked.answer == ("yes" if present else "no")
        elif asked.kind == "count":
            word = re.fullmatch(r"how many (\w+?)s?( objects)? are there", text).group(1)
            count = sum(word in ("object", item.shape, item.color) for item in scene.objects)
            assert asked.answer == ("zero", "one", "two", "three")[count]
        else:
            first, relation, second = re.fullmatch(r"is (.+?) (left of|right of|above|below) (.+)", text).groups()
            (one,), (two,) = pointed_at(scene, first), pointed_at(scene, second)
            assert asked.answer == ("yes" if holds(one, relation, two) else "no")


def test_explanations_lead_to_the_answer():
    """What was seen decides: places for positions and relations, the list's length for counts, the shapes for existence."""
    for scene, asked in draw(200):
        seen = asked.explanation
        if asked.kind in ("color", "shape"):
            assert seen == ""
        elif asked.kind == "position":
            (item,) = pointed_at(scene, asked.question.removeprefix("where is ").removesuffix("?"))
            assert seen == f"{item.shape} {item.color} {asked.answer}"
        elif asked.kind == "count":
            listed = re.findall(r"\w+", seen.partition(": ")[2] or seen)
            of_all = asked.question == "how many objects are there?"
            words = [word for word in listed if word not in ("and", "nothing")]
            assert NUMBERS[len(words) // 2 if of_all else len(words)] == asked.answer
        elif asked.kind == "existence":
            color, shape = re.fullmatch(r"is there an? (\w+) (\w+)\?", asked.question).groups()
            there = [item.shape for item in scene.objects if item.color == color]
            assert (shape in there) == (asked.answer == "yes") == (seen == f"{color} {shape}")
            if shape not in there:
                assert seen in [f"{color} {other}, not {shape}" for other in there] or (seen == f"nothing {color}" and not there)
        else:
            relation = re.search(r"left of|right of|above|below", asked.question).group()
            cells = [divmod(POSITIONS.index(" ".join(part.split()[2:])), 3) for part in seen.split(", ")]
            one, two = (SceneObject(cell, "circle", "red", "small") for cell in cells)
            assert holds(one, relation, two) == (asked.answer == "yes")


def test_answers_are_short_and_from_a_closed_list():
    known = {"yes", "no", "zero", "one", "two", "three", *COLORS, *SHAPES, *POSITIONS, *BACKGROUNDS}
    assert {asked.answer for _, asked in draw(200)} <= known


def test_every_kind_is_asked_in_order():
    kinds = [asked.kind for asked in questions(SCENE, np.random.default_rng(0))]
    assert kinds == list(QUESTION_KINDS)
    alone = [asked.kind for asked in questions(Scene((CIRCLE,), "white"), np.random.default_rng(0))]
    assert "relation" not in alone
    empty = {asked.kind for seed in range(9) for asked in questions(Scene((), "white"), np.random.default_rng(seed))}
    assert empty == {"count", "existence", "color"}
    chosen = questions(SCENE, np.random.default_rng(0), ("relation", "count"))
    assert [asked.kind for asked in chosen] == ["relation", "count"]


def test_yes_and_no_are_balanced():
    """n ≥ 250 per kind: 4.5 standard deviations are under ±0.15, a false failure less than once in 10^5."""
    answers = Counter((asked.kind, asked.answer) for _, asked in draw(500))
    for kind in ("existence", "relation"):
        yes, no = answers[kind, "yes"], answers[kind, "no"]
        assert yes + no >= 250
        assert abs(yes / (yes + no) - 0.5) < 0.15


def test_no_relation_question_of_training_names_a_held_out_relation():
    kinds = {f"{color} {shape}": (shape, color) for color in COLORS for shape in SHAPES}
    for _, asked in draw(500, "train"):
        if asked.kind == "relation":
            match = re.fullmatch(r"is the (.+?) (left of|right of|above|below) the (.+)\?", asked.question)
            first, second = (SceneObject((0, 0), *kinds[match.group(index)], "small") for index in (1, 3))
            assert not is_held_out_relation(first, match.group(2), second)


def test_names_single_out_one_object():
    assert names_of(SCENE, CIRCLE) == [
        "the red object",
        "the red circle",
        "the large red circle",
        "the object at the top left",
        "the circle at the top left",
        "the red circle at the top left",
        "the large red circle at the top left",
    ]
    assert name_by(OTHER, ("size", "shape")) == "the large circle"
    for scene, _ in draw(20):
        for item in scene.objects:
            assert all(pointed_at(scene, name) == [item] for name in names_of(scene, item, FORMS))


def test_equal_generators_give_equal_questions():
    assert questions(SCENE, np.random.default_rng(2)) == questions(SCENE, np.random.default_rng(2))
