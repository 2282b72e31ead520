"""Edits: the instruction alone, applied to the scene before, gives the scene after; the mask is what changes."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from cm3.scenes.edits import EDIT_KINDS, changed_region, sample_edit
from cm3.scenes.render import render
from cm3.scenes.split import is_held_out
from cm3.scenes.world import SHAPES, Scene, SceneObject, WorldConfig, position_cell

CONFIG = WorldConfig()


def draw(count, split="train", kind=None, config=CONFIG):
    rng = np.random.default_rng(0)
    return [sample_edit(rng, config, split, kind) for _ in range(count)]


def follow(scene, instruction):
    """A second, independent reading of instructions: words in, scene out."""
    if match := re.fullmatch(r"(?:make|change) the background (?:to )?(\w+)", instruction):
        return Scene(scene.objects, match.group(1))
    if match := re.fullmatch(r"add an? (\w+) (\w+) (\w+) (?:at|in) the (.+)", instruction):
        size, color, shape, place = match.groups()
        return Scene((*scene.objects, SceneObject(position_cell(place), shape, color, size)), scene.background)
    if match := re.fullmatch(r"(?:remove|delete) (.+)", instruction):
        return replaced(scene, match.group(1))
    if match := re.fullmatch(r"(?:turn|change the shape of) (.+) (?:into|to) a (\w+)", instruction):
        return replaced(scene, match.group(1), shape=match.group(2))
    if match := re.fullmatch(r"(?:move|shift) (.+) to the (.+)", instruction):
        return replaced(scene, match.group(1), cell=position_cell(match.group(2)))
    match = re.fullmatch(r"make (.+) (\w+)", instruction) or re.fullmatch(r"change the color of (.+) to (\w+)", instruction)
    return replaced(scene, match.group(1), color=match.group(2))


def replaced(scene, phrase, **changes):
    words, _, place = phrase.partition(" at the ")
    wanted = words.removeprefix("the ").split()
    (item,) = (
        item
        for item in scene.objects
        if all(word in (item.shape, item.color, item.size) for word in wanted) and place in ("", item.position)
    )
    kept = tuple(other for other in scene.objects if other is not item)
    values = {"cell": item.cell, "shape": item.shape, "color": item.color, "size": item.size, **changes}
    return Scene(kept + ((SceneObject(**values),) if changes else ()), scene.background)


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_instructions_have_one_meaning(kind):
    for edit in draw(60, kind=kind):
        assert edit.kind == kind
        assert follow(edit.before, edit.instruction) == edit.after != edit.before, edit.instruction


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_splits(kind):
    for edit in draw(20, "train", kind):
        assert not is_held_out(edit.before)
        assert not is_held_out(edit.after)
    assert all(is_held_out(edit.after) for edit in draw(20, "test", kind))


def test_kinds_are_balanced():
    """Multinomial, n = 600: 4.5 standard deviations are ±0.07, a false failure less than once in 10^4."""
    kinds = Counter(edit.kind for edit in draw(600))
    assert set(kinds) == set(EDIT_KINDS)
    assert all(abs(count / 600 - 1 / 6) < 0.07 for count in kinds.values())


def test_the_number_of_objects_stays_in_bounds():
    for edit in draw(200):
        assert 1 <= len(edit.after.objects) <= CONFIG.max_objects
    lone = draw(30, config=WorldConfig(max_objects=1))
    assert {len(edit.after.objects) for edit in lone} == {1}


@pytest.mark.parametrize("config", [CONFIG, WorldConfig(jitter=2, texture=2)])
def test_nothing_changes_outside_the_mask(config):
    for edit in draw(60, config=config):
        before, after = (np.asarray(render(scene, config)) for scene in (edit.before, edit.after))
        changed = (before != after).any(axis=2)
        assert changed.any()
        assert not changed[~edit.mask].any()
        assert edit.mask.dtype == bool


def test_masks_are_whole_cells():
    one = Scene((SceneObject((0, 1), "circle", "red", "small"),), "white")
    moved = Scene((SceneObject((2, 1), "circle", "red", "small"),), "white")
    mask = changed_region(one, moved, CONFIG)
    assert mask.sum() == 2 * 16 * 16
    assert mask[:16, 16:32].all()
    assert mask[32:, 16:32].all()
    assert changed_region(one, Scene(one.objects, "black"), CONFIG).all()
    assert not changed_region(one, one, CONFIG).any()


def test_reshape_reaches_every_shape():
    assert {edit.instruction.split()[-1] for edit in draw(60, kind="reshape")} == set(SHAPES)


def test_equal_seeds_give_equal_edits():
    assert [edit.instruction for edit in draw(10)] == [edit.instruction for edit in draw(10)]
