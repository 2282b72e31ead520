"""Held-out combinations: how many, spread how, and which scenes have them."""

from __future__ import annotations

from collections import Counter

from cm3.scenes.split import (
    HELD_OUT_PLACES,
    HELD_OUT_RELATIONS,
    belongs,
    held_out_reasons,
    is_held_out,
    is_held_out_relation,
)
from cm3.scenes.world import COLORS, SHAPES, Scene, SceneObject

RED_CIRCLE = SceneObject((1, 0), "circle", "red", "large")
BLUE_SQUARE = SceneObject((2, 1), "square", "blue", "small")


def test_between_eight_and_ten_percent_of_the_places_are_held_out():
    assert 0.08 <= len(HELD_OUT_PLACES) / (4 * 6 * 9) <= 0.10


def test_the_sets_are_fixed():
    """A change of the split makes results incomparable: it must be a decision, not an accident."""
    assert ("circle", "red", (0, 0)) in HELD_OUT_PLACES
    assert ("diamond", "purple", (1, 1)) in HELD_OUT_PLACES
    assert (("circle", "red"), "left of", ("square", "blue")) in HELD_OUT_RELATIONS
    assert len(HELD_OUT_PLACES) == 20


def test_most_of_every_shape_color_cell_and_pair_is_left_for_training():
    shapes, colors, cells = zip(*HELD_OUT_PLACES, strict=True)
    assert max(Counter(shapes).values()) <= 6 < 6 * 9
    assert max(Counter(colors).values()) <= 4 < 4 * 9
    assert max(Counter(cells).values()) <= 3 < 4 * 6
    assert set(cells) == {(row, column) for row in range(3) for column in range(3)}
    for pairs in (zip(shapes, colors), zip(shapes, cells), zip(colors, cells)):
        assert max(Counter(pairs).values()) <= 2


def test_every_kind_of_object_is_in_one_held_out_relation():
    kinds = [kind for first, _, second in HELD_OUT_RELATIONS for kind in (first, second)]
    assert sorted(kinds) == sorted((shape, color) for shape in SHAPES for color in COLORS)


def test_a_relation_is_held_out_from_both_sides():
    assert is_held_out_relation(RED_CIRCLE, "left of", BLUE_SQUARE)
    assert is_held_out_relation(BLUE_SQUARE, "right of", RED_CIRCLE)
    assert not is_held_out_relation(BLUE_SQUARE, "left of", RED_CIRCLE)
    assert not is_held_out_relation(RED_CIRCLE, "above", BLUE_SQUARE)


def test_reasons_name_places_and_relations():
    scene = Scene((RED_CIRCLE, BLUE_SQUARE), "white")
    assert held_out_reasons(scene) == ["red circle left of blue square"]
    corner = SceneObject((0, 0), "circle", "red", "small")
    assert held_out_reasons(Scene((corner,), "white")) == ["red circle at top left"]
    assert len(held_out_reasons(Scene((corner, BLUE_SQUARE), "white"))) == 2


def test_a_held_out_pair_in_another_arrangement_is_free():
    under = SceneObject((0, 0), "square", "blue", "small")
    scene = Scene((RED_CIRCLE, under), "white")
    assert not is_held_out(scene)
    assert belongs(scene, "train")
    assert belongs(scene, "any")
    assert not belongs(scene, "test")
