"""Captions: true of their scene, as informative as their kind says, from a small vocabulary."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cm3.scenes.language import CAPTION_KINDS, Caption, caption, plural, related_pairs
from cm3.scenes.parse import parse_caption
from cm3.scenes.sampling import sample_scene
from cm3.scenes.score import score_caption, score_statement
from cm3.scenes.world import Scene, SceneObject, WorldConfig, holds

TWO = Scene((SceneObject((0, 0), "circle", "red", "large"), SceneObject((1, 1), "square", "orange", "small")), "white")


def draw(count, seed=0):
    rng = np.random.default_rng(seed)
    return [(sample_scene(rng, WorldConfig(), "any"), rng) for _ in range(count)]


def wordings(scene, kind, count=300):
    rng = np.random.default_rng(0)
    return {caption(scene, rng, kind).text for _ in range(count)}


def test_full_captions_determine_the_scene():
    for scene, rng in draw(200):
        text = caption(scene, rng).text
        assert score_caption(text, scene).exact, text
        assert score_statement(scene, text).all, text


@pytest.mark.parametrize("kind", CAPTION_KINDS)
def test_captions_are_true_and_clean(kind):
    for scene, rng in draw(100, seed=1):
        text = caption(scene, rng, kind).text
        assert parse_caption(text).clean, text
        assert score_statement(scene, text).all, text


def test_full_captions_have_four_wordings_and_two_orders():
    assert wordings(TWO, "full") == {
        "a large red circle at the top left and a small orange square at the middle center on a white background",
        "a small orange square at the middle center and a large red circle at the top left on a white background",
        "on a white background, a large red circle at the top left and a small orange square at the middle center",
        "on a white background, a small orange square at the middle center and a large red circle at the top left",
        "white background: large red circle top left, small orange square middle center",
        "white background: small orange square middle center, large red circle top left",
        "at the top left a large red circle and at the middle center a small orange square on white",
        "at the middle center a small orange square and at the top left a large red circle on white",
    }


def test_shorter_kinds_leave_things_out():
    assert "a small orange square and a large red circle on a white background" in wordings(TWO, "attributes")
    assert "a red circle left of an orange square" in wordings(TWO, "relation")
    assert wordings(TWO, "count") == {
        "one circle and one square on a white background",
        "two objects on a white background",
        "two objects: one circle and one square on a white background",
    }


def test_one_object_has_no_relation():
    rng = np.random.default_rng(0)
    one = Scene(TWO.objects[:1], "white")
    assert caption(one, rng, "relation").kind == "attributes"
    twins = Scene((SceneObject((0, 0), "circle", "red", "large"), SceneObject((0, 1), "circle", "red", "small")), "white")
    assert related_pairs(twins) == []


def test_related_pairs_hold():
    for scene, _ in draw(50):
        assert all(holds(*triple) for triple in related_pairs(scene))
    assert len(related_pairs(TWO)) == 4


def test_the_vocabulary_is_small():
    words = {
        word for scene, rng in draw(400) for kind in CAPTION_KINDS for word in re.findall(r"\w+", caption(scene, rng, kind).text)
    }
    assert len(words) <= 60


def test_equal_generators_give_equal_captions():
    first, second = (caption(TWO, np.random.default_rng(3)) for _ in range(2))
    assert first == second
    assert isinstance(first, Caption)


def test_plural():
    assert [plural("circle", count) for count in (0, 1, 2)] == ["zero circles", "one circle", "two circles"]


def test_an_empty_scene_can_be_described():
    empty = Scene((), "black")
    rng = np.random.default_rng(0)
    for kind in CAPTION_KINDS:
        assert score_statement(empty, caption(empty, rng, kind).text).all
