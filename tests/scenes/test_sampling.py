"""Random scenes: the split they belong to, how many objects they have, and that seeds repeat."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from cm3.scenes.sampling import sample_scene
from cm3.scenes.split import HELD_OUT_RELATIONS, held_out_reasons, is_held_out
from cm3.scenes.world import BACKGROUNDS, COLORS, SHAPES, SIZES, WorldConfig


def draw(count, split="train", seed=0, **values):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, WorldConfig(**values), split) for _ in range(count)]


def test_training_scenes_have_no_held_out_combination_and_test_scenes_have_one():
    assert not any(is_held_out(scene) for scene in draw(1000, "train"))
    assert all(is_held_out(scene) for scene in draw(300, "test"))


def test_equal_seeds_give_equal_scenes():
    assert draw(20, "test", seed=5) == draw(20, "test", seed=5)
    assert draw(20, seed=5) != draw(20, seed=6)


@pytest.mark.parametrize("split", ["train", "test"])
def test_object_counts_follow_the_weights_in_every_split(split):
    """Binomial, n = 600: 4.5 standard deviations are ±0.09, a false failure less than once in 10^5."""
    counts = Counter(len(scene.objects) for scene in draw(600, split, object_weights=(2, 1, 1)))
    assert abs(counts[1] / 600 - 0.5) < 0.09
    assert abs(counts[2] / 600 - 0.25) < 0.09
    assert sum(counts.values()) == 600


def test_a_weight_of_zero_leaves_a_count_out():
    assert {len(scene.objects) for scene in draw(100, object_weights=(0, 1, 0))} == {2}


def test_many_objects_fit():
    scenes = draw(20, "any", max_objects=9, object_weights=(0,) * 8 + (1,))
    assert all(len(scene.objects) == 9 for scene in scenes)


def test_every_word_occurs_in_training():
    scenes = draw(600)
    objects = [item for scene in scenes for item in scene.objects]
    assert {item.shape for item in objects} == set(SHAPES)
    assert {item.color for item in objects} == set(COLORS)
    assert {item.size for item in objects} == set(SIZES)
    assert len({item.cell for item in objects}) == 9
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def in_words(triple):
    (shape, color), relation, (other_shape, other_color) = triple
    return f"{color} {shape} {relation} {other_color} {other_shape}"


def test_half_of_the_larger_test_scenes_show_a_held_out_relation():
    """Half are built around one, some others have one by chance: 0.547 in all, less 4 standard deviations at n = 2000."""
    reasons = [held_out_reasons(scene) for scene in draw(2000, "test", object_weights=(0, 1, 0))]
    related = [[reason for reason in found if " left of " in reason or " above " in reason] for found in reasons]
    assert {reason for found in related for reason in found} == {in_words(triple) for triple in HELD_OUT_RELATIONS}
    assert sum(map(bool, related)) / 2000 > 0.502


def test_jitter_and_texture_only_when_asked_for():
    plain = draw(20)
    assert all(item.offset == (0, 0) for scene in plain for item in scene.objects)
    assert all(scene.texture == 0 for scene in plain)
    rich = draw(20, jitter=3, texture=1)
    assert any(item.offset != (0, 0) for scene in rich for item in scene.objects)
    assert all(scene.texture > 0 for scene in rich)
