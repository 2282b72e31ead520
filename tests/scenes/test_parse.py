"""Reading captions: what is stated, and what is not clean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.scenes.parse import StatedObject, Statements, parse_caption
from cm3.scenes.world import SceneObject

RED_CIRCLE = StatedObject("circle", "red", "large", (0, 0))
BLUE_SQUARE = StatedObject("square", "blue", "small", (1, 1))


@pytest.mark.parametrize(
    "text",
    [
        "a large red circle at the top left and a small blue square at the middle center on a white background",
        "on a white background, a large red circle at the top left and a small blue square at the middle center",
        "white background: large red circle top left, small blue square middle center",
        "at the top left a large red circle and at the middle center a small blue square on white",
        "A LARGE red circle at the top left and a small blue square at the middle center on a white background.",
    ],
)
def test_every_wording_of_a_full_caption(text):
    stated = parse_caption(text)
    assert stated == Statements((RED_CIRCLE, BLUE_SQUARE), (), "white")
    assert stated.complete


def test_relations():
    stated = parse_caption("a large red circle left of a blue square")
    assert stated.objects == (StatedObject("circle", "red", "large"), StatedObject("square", "blue"))
    assert stated.relations == ((0, "left of", 1),)
    assert stated.clean
    assert not stated.closed


def test_left_is_a_position_and_left_of_a_relation():
    stated = parse_caption("a red circle at the middle left above a blue square at the middle right")
    assert [item.cell for item in stated.objects] == [(1, 0), (1, 2)]
    assert stated.relations == ((0, "above", 1),)


def test_counts():
    stated = parse_caption("three objects: one circle and two red squares on a gray background")
    assert stated.total == 3
    assert stated.objects == (StatedObject("circle", count=1), StatedObject("square", "red", count=2))
    assert stated.closed
    assert not stated.complete


def test_nothing_is_a_whole_scene():
    stated = parse_caption("nothing on a black background")
    assert stated == Statements(background="black")
    assert stated.complete


@pytest.mark.parametrize(
    "text",
    [
        "a large red",
        "a large small circle",
        "a red blue circle",
        "left of a circle",
        "a circle left of",
        "a purple elephant at the top center",
        "a red circle on a white background on a black background",
        "two objects and three objects",
        "a circle at the top left at the bottom center",
    ],
)
def test_faults_are_not_clean(text):
    assert not parse_caption(text).clean


def test_a_position_too_many_is_no_complete_caption():
    assert not parse_caption("a large red circle at the top left at the bottom right on a white background").complete


def test_agreement_and_fit():
    item = SceneObject((0, 0), "circle", "red", "small")
    assert RED_CIRCLE.agreement(item) == 3
    assert not RED_CIRCLE.fits(item)
    assert StatedObject("circle").fits(item)
    assert StatedObject().agreement(item) == 0


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.one_of(
        st.text("a2Zé,:. \n\t\0'-💎", max_size=40),
        st.lists(st.sampled_from(["a", "red", "circle", "left of", "top", "two", ",", "and", ":", "white"])).map(" ".join),
    )
)
def test_any_text_is_read(text):
    stated = parse_caption(text)
    assert isinstance(stated.complete, bool)
    assert all(first < len(stated.objects) > second for first, _, second in stated.relations)
