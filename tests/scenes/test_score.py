"""Judgement: right is right, and every single fault is noticed."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from cm3.scenes.parse import parse_caption
from cm3.scenes.sampling import sample_scene
from cm3.scenes.score import CaptionScore, score_answer, score_caption, score_scene, score_statement
from cm3.scenes.world import Scene, SceneObject, WorldConfig

CIRCLE = SceneObject((0, 0), "circle", "red", "large")
SQUARE = SceneObject((1, 1), "square", "blue", "small")
EXTRA = SceneObject((2, 2), "diamond", "green", "small")
SCENE = Scene((CIRCLE, SQUARE), "white")
FULL = SCENE.describe()

WRONG = {
    "size": Scene((replace(CIRCLE, size="small"), SQUARE), "white"),
    "color": Scene((replace(CIRCLE, color="green"), SQUARE), "white"),
    "shape": Scene((replace(CIRCLE, shape="diamond"), SQUARE), "white"),
    "cell": Scene((replace(CIRCLE, cell=(0, 2)), SQUARE), "white"),
    "background": Scene((CIRCLE, SQUARE), "pink"),
    "missing": Scene((CIRCLE,), "white"),
    "extra": Scene((CIRCLE, SQUARE, EXTRA), "white"),
    "swapped": Scene((replace(CIRCLE, cell=(1, 1)), replace(SQUARE, cell=(0, 0))), "white"),
    "bound wrongly": Scene((replace(CIRCLE, color="blue"), replace(SQUARE, color="red")), "white"),
}


def test_the_right_scene_scores_full():
    score = score_scene(SCENE, SCENE)
    assert (score.all, score.objects, score.count, score.positions, score.background, score.relations) == (
        True,
        1,
        True,
        1,
        True,
        1,
    )
    assert score_statement(SCENE, FULL).all
    assert score_statement(SCENE, FULL).fraction == 1
    assert score_caption(FULL, SCENE) == CaptionScore(1.0, True)


@pytest.mark.parametrize("fault", WRONG)
def test_every_fault_costs_all_three_verdicts(fault):
    assert not score_scene(WRONG[fault], SCENE).all
    assert not score_statement(WRONG[fault], FULL).all
    assert not score_caption(WRONG[fault].describe(), SCENE).exact


def test_scene_scores_tell_faults_apart():
    moved = score_scene(WRONG["swapped"], SCENE)
    assert (moved.objects, moved.positions, moved.relations) == (1, 1, 0)
    assert score_scene(WRONG["cell"], SCENE).positions == pytest.approx(1 / 3)
    assert score_scene(WRONG["color"], SCENE).objects == pytest.approx(1 / 3)
    assert score_scene(WRONG["missing"], SCENE).count is False
    assert score_scene(WRONG["background"], SCENE).background is False
    assert score_scene(Scene((CIRCLE,), "white"), Scene((CIRCLE,), "white")).relations is None


def test_statements_ask_for_no_more_than_they_state():
    assert score_statement(WRONG["extra"], "a red circle left of a blue square").all
    assert score_statement(SCENE, "a blue square right of a large red circle").all
    assert score_statement(SCENE, "two objects").all
    assert score_statement(SCENE, "a circle").all
    assert not score_statement(SCENE, "a blue square left of a large red circle").all
    assert not score_statement(SCENE, "three objects").all
    assert score_statement(SCENE, "a blue square left of a large red circle").fraction == pytest.approx(2 / 3)


def test_a_list_with_a_background_is_the_whole_list():
    text = "a small blue square and a large red circle on a white background"
    assert score_statement(SCENE, text).all
    assert not score_statement(WRONG["extra"], text).all
    assert not score_statement(WRONG["extra"], "one circle and one square on a white background").all


def test_numbers_are_exact():
    twins = Scene((CIRCLE, replace(CIRCLE, cell=(2, 0))), "white")
    assert score_statement(twins, "two circles").all
    assert score_statement(twins, "a circle").all
    assert not score_statement(twins, "one circle").all


def test_two_phrases_need_two_objects():
    assert not score_statement(Scene((CIRCLE,), "white"), "a red circle and a large circle").all
    assert score_statement(Scene((CIRCLE, EXTRA), "white"), "a circle and a small diamond").all


def test_relations_must_hold_for_the_same_objects():
    """Red circles on both sides: each relation alone has a pair, but no single circle stands left of and below."""
    text = "a red circle left of a blue square above a green diamond"
    right = Scene((CIRCLE, SQUARE, EXTRA), "white")
    assert score_statement(right, text).all
    other = SceneObject((0, 2), "square", "blue", "small")
    split = Scene((SceneObject((1, 0), "square", "blue", "small"), SceneObject((2, 1), "circle", "red", "large")), "white")
    wrong = Scene((*split.objects, other, EXTRA), "white")
    assert score_statement(wrong, "a red circle left of a blue square").all
    assert score_statement(wrong, text).all  # the square at the top right is right of the circle and above the diamond
    assert not score_statement(Scene((*split.objects, EXTRA), "white"), text).all


def test_fraction_counts_single_statements():
    assert score_statement(WRONG["background"], FULL).fraction == pytest.approx(3 / 4)
    assert score_statement(SCENE, "").fraction == 0
    assert not score_statement(SCENE, "").all
    assert not score_statement(SCENE, "gibberish").all


@pytest.mark.parametrize(
    ("text", "attributes"),
    [
        ("a small red circle at the top left and a small blue square at the middle center on a white background", 7 / 8),
        ("a large red circle at the top left on a white background", 4 / 8),
        (WRONG["extra"].describe(), 8 / 12),
        ("", 0),
        ("one circle and one square on a white background", 2 / 8),
        ("two circles", 1 / 8),
    ],
)
def test_caption_attributes(text, attributes):
    score = score_caption(text, SCENE)
    assert score.attributes == pytest.approx(attributes)
    assert not score.exact


def test_captions_pair_objects_as_well_as_possible():
    """Against brute force over all pairings."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        described, target = (sample_scene(rng, WorldConfig(), "any") for _ in range(2))
        stated = parse_caption(described.describe()).objects
        longer, shorter = sorted((target.objects, stated), key=len, reverse=True)
        best = max(
            sum(a.agreement(b) if hasattr(a, "agreement") else b.agreement(a) for a, b in zip(order, shorter))
            for order in permutations(longer)
        )
        score = score_caption(described.describe(), target)
        assert score.attributes == pytest.approx(best / (4 * len(longer)))


def test_a_caption_with_noise_words_is_not_exact():
    assert not score_caption(FULL + " banana", SCENE).exact
    assert score_caption(FULL + " banana", SCENE).attributes == 1


def test_an_endless_caption_is_judged_in_time():
    text = " and ".join(["nine red circles", "a large blue square at the top"] * 40)
    assert not score_caption(text, SCENE).exact
    assert not score_statement(SCENE, text).all


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("yes", "yes", True),
        (" Yes.", "yes", True),
        ("the top-left", "top left", True),
        ("2", "two", True),
        ("at the middle center", "middle center", True),
        ("two", "three", False),
        ("left", "top left", False),
        ("yes no", "yes", False),
        ("", "no", False),
    ],
)
def test_answers(answer, expected, right):
    assert score_answer(answer, expected) is right
