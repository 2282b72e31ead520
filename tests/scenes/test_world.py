"""Scene records: identity, order, description, JSON, configuration."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from cm3.core.errors import InputError, UsageError
from cm3.core.runfile import load_run
from cm3.scenes.world import (
    POSITIONS,
    Scene,
    SceneObject,
    WorldConfig,
    holds,
    join_words,
    position_cell,
    position_name,
)

CIRCLE = SceneObject((0, 0), "circle", "red", "large")
SQUARE = SceneObject((1, 1), "square", "orange", "small")


def test_scenes_compare_by_what_they_show():
    shifted = SceneObject((0, 0), "circle", "red", "large", offset=(1, -1))
    assert Scene((SQUARE, CIRCLE), "white") == Scene((shifted, SQUARE), "white", texture=7)
    assert Scene((CIRCLE,), "white") != Scene((CIRCLE,), "black")
    assert Scene((CIRCLE,), "white") != Scene((SceneObject((0, 0), "circle", "red", "small"),), "white")


def test_objects_stand_in_reading_order():
    assert Scene((SQUARE, CIRCLE), "white").objects == (CIRCLE, SQUARE)


def test_describe_names_everything():
    assert Scene((SQUARE, CIRCLE), "white").describe() == (
        "a large red circle at the top left and a small orange square at the middle center on a white background"
    )
    assert Scene((), "black").describe() == "nothing on a black background"


def test_json_gives_the_scene_back_with_shifts_and_texture():
    scene = Scene((SceneObject((2, 0), "diamond", "blue", "small", (2, -3)), CIRCLE), "pink", texture=99)
    back = Scene.from_json(json.loads(json.dumps(scene.to_json())))
    assert back == scene
    assert (back.texture, back.objects[1].offset) == (99, (2, -3))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"objects": [{}], "background": "white"},
        {"objects": [], "background": "beige"},
        {"objects": 3, "background": "white"},
        {"objects": [{"cell": [0, 3], "shape": "circle", "color": "red", "size": "large"}], "background": "white"},
        {"objects": [{"cell": [0], "shape": "circle", "color": "red", "size": "large"}], "background": "white"},
        {"objects": [{"cell": [0, 0], "shape": "star", "color": "red", "size": "large"}], "background": "white"},
        {"objects": [{"cell": [0, 0], "shape": "circle", "color": "red", "size": "large"}] * 2, "background": "white"},
        {"objects": [{"cell": [0, 0], "shape": [], "color": "red", "size": "large"}], "background": "white"},
    ],
)
def test_damaged_records_are_refused_with_one_sentence(record):
    with pytest.raises(InputError, match="scene"):
        Scene.from_json(record)


def test_positions_have_nine_names():
    assert len(set(POSITIONS)) == 9
    assert all(position_name(position_cell(name)) == name for name in POSITIONS)
    assert position_name((2, 0)) == "bottom left"


def test_relations_look_at_rows_and_columns():
    assert holds(CIRCLE, "left of", SQUARE)
    assert holds(SQUARE, "right of", CIRCLE)
    assert holds(CIRCLE, "above", SQUARE)
    assert holds(SQUARE, "below", CIRCLE)
    below = SceneObject((2, 0), "circle", "red", "large")
    assert not holds(CIRCLE, "left of", below)
    assert not holds(CIRCLE, "right of", below)


def test_join_words():
    assert [join_words(list("abc"[:count])) for count in range(4)] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    "values",
    [
        {"image_size": 50},
        {"image_size": 0},
        {"max_objects": 10},
        {"jitter": -1},
        {"texture": 3},
        {"object_weights": (1, 1)},
        {"object_weights": (0, 0, 0)},
        {"object_weights": (2, -1, 1)},
        {"colour": 1},
    ],
)
def test_bad_configurations_are_refused(values):
    with pytest.raises(ValidationError):
        WorldConfig(**values)


def test_configuration_takes_overrides_of_a_run_file():
    assert load_run(WorldConfig, None, ["image_size=96"]).cell_size == 32
    with pytest.raises(UsageError, match="multiple of 24"):
        load_run(WorldConfig, None, ["image_size=100"])
