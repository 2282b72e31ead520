"""Scenes read back from pixels: always right on renderings, steady under the faults of a tokenizer."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from cm3.scenes.read import read_scene, read_scenes
from cm3.scenes.render import render
from cm3.scenes.sampling import sample_scene
from cm3.scenes.world import BACKGROUNDS, COLORS, SHAPES, SIZES, Scene, SceneObject, WorldConfig

CONFIG = WorldConfig()


def draw(count, config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, config, "any") for _ in range(count)]


def test_every_object_on_every_background_is_read_back():
    """All 4 × 6 × 2 × 9 × 4 scenes of one object, and the empty ones."""
    cells = list(product(range(3), range(3)))
    scenes = [
        Scene((SceneObject(cell, shape, color, size),), background)
        for cell, shape, color, size, background in product(cells, SHAPES, COLORS, SIZES, BACKGROUNDS)
    ]
    scenes += [Scene((), background) for background in BACKGROUNDS]
    assert read_scenes([render(scene, CONFIG) for scene in scenes]) == scenes


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    image_size=st.sampled_from([24, 48, 72, 96, 216]),
    objects=st.integers(1, 9),
    jitter=st.integers(0, 5),
    texture=st.integers(0, 2),
)
def test_any_scene_of_any_world_is_read_back(seed, image_size, objects, jitter, texture):
    config = WorldConfig(image_size=image_size, max_objects=objects, jitter=jitter, texture=texture)
    scenes = draw(4, config, seed)
    assert read_scenes([render(scene, config) for scene in scenes], config) == scenes


def test_shifts_are_read_too():
    config = WorldConfig(jitter=3)
    for scene in draw(30, config):
        found = read_scene(render(scene, config), config)
        assert [item.offset for item in found.objects] == [item.offset for item in scene.objects]


def test_noise_of_a_tokenizer_changes_nothing():
    """Gaussian noise of 16 gray levels is about 24 dB, worse than any usable tokenizer."""
    rng = np.random.default_rng(1)
    scenes = draw(100)
    noisy = [np.asarray(render(scene, CONFIG), float) + rng.normal(0, 16, (48, 48, 3)) for scene in scenes]
    assert read_scenes([Image.fromarray(pixels.clip(0, 255).astype(np.uint8)) for pixels in noisy]) == scenes


def test_slight_blur_changes_nothing():
    scenes = draw(100)
    assert read_scenes([render(scene, CONFIG).filter(ImageFilter.GaussianBlur(0.6)) for scene in scenes]) == scenes


def test_a_wrong_patch_is_noticed():
    """The reader is no flatterer: an object painted over with background is gone."""
    scene = Scene((SceneObject((0, 0), "circle", "red", "large"), SceneObject((2, 2), "square", "blue", "small")), "white")
    picture = render(scene, CONFIG)
    picture.paste(BACKGROUNDS["white"], (32, 32, 48, 48))
    assert read_scene(picture) == Scene(scene.objects[:1], "white")


def test_other_sizes_and_modes_are_taken():
    scene = draw(1)[0]
    big = render(scene, WorldConfig(image_size=192))
    assert read_scene(big) == scene
    assert read_scene(render(scene, CONFIG).convert("RGBA")) == scene


def test_no_pictures_no_scenes():
    assert read_scenes([]) == []


@pytest.mark.parametrize("gray", [0, 128, 255])
def test_a_flat_picture_has_no_objects(gray):
    assert read_scene(Image.new("RGB", (48, 48), (gray, gray, gray))).objects == ()
