"""Pictures and maps of scenes."""

from __future__ import annotations

import numpy as np
import pytest

from cm3.scenes.render import boxes, edges, render, segmentation, shape_coverage, slack
from cm3.scenes.sampling import sample_scene
from cm3.scenes.world import BACKGROUNDS, COLORS, SHAPES, Scene, SceneObject, WorldConfig

CONFIG = WorldConfig()
SCENE = Scene((SceneObject((0, 1), "square", "blue", "small"), SceneObject((2, 2), "circle", "red", "large")), "white")


def test_colors_lie_where_the_scene_says():
    pixels = np.asarray(render(SCENE, CONFIG))
    assert pixels.shape == (48, 48, 3)
    assert pixels.dtype == np.uint8
    assert tuple(pixels[8, 24]) == COLORS["blue"]
    assert tuple(pixels[40, 40]) == COLORS["red"]
    assert tuple(pixels[24, 24]) == BACKGROUNDS["white"]
    assert tuple(pixels[32, 32]) == BACKGROUNDS["white"]  # the corner that the circle leaves free


@pytest.mark.parametrize(("shape", "area"), [("circle", np.pi / 4), ("square", 1), ("triangle", 0.5), ("diamond", 0.5)])
def test_coverage_is_the_area_of_the_shape(shape, area):
    for size, extent in (("small", 8), ("large", 14)):
        assert shape_coverage(shape, size, 16).sum() == pytest.approx(
            area * extent**2, rel=0.04
        )  # points on the rim count as inside


def test_triangles_stand_on_their_base():
    rows = shape_coverage("triangle", "large", 16).sum(axis=1)
    assert rows[13] > rows[8] > rows[2] > 0


def test_coverage_is_shared_and_can_not_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        shape_coverage("circle", "small", 16)[0, 0] = 1


def test_aligned_patches_repeat():
    """Without jitter and texture the 8×8 patches of any number of scenes come from a small set."""
    rng = np.random.default_rng(0)
    images = np.stack([np.asarray(render(sample_scene(rng, CONFIG, "any"), CONFIG)) for _ in range(300)])
    patches = images.reshape(300, 6, 8, 6, 8, 3).swapaxes(2, 3).reshape(-1, 8 * 8 * 3)
    assert (
        len(np.unique(patches, axis=0)) <= 4 + 4 * 4 * 2 * 6 * 4
    )  # backgrounds; quarters × shapes × sizes × colors × backgrounds


def test_size_scales_the_picture():
    small, big = (np.asarray(render(SCENE, WorldConfig(image_size=size)), float) for size in (48, 96))
    halved = big.reshape(48, 2, 48, 2, 3).mean(axis=(1, 3))
    assert abs(halved - small).max() <= 2


def test_shifts_stay_in_the_cell():
    reach = slack("small", 16)
    assert reach == 4
    for offset in ((reach, reach), (-reach, reach)):
        scene = Scene((SceneObject((1, 1), "square", "red", "small", offset),), "black")
        labels = segmentation(scene, CONFIG)
        assert labels.sum() == 64
        assert labels[16:32, 16:32].sum() == 64
    assert slack("large", 16) == 1


@pytest.mark.parametrize("texture", [1, 2])
def test_texture_is_mild_and_repeats(texture):
    config = WorldConfig(texture=texture)
    scene = Scene((), "gray", texture=11)
    pixels = np.asarray(render(scene, config), float)
    assert pixels.tobytes() == np.asarray(render(scene, config), float).tobytes()
    assert 2 < pixels.std(axis=(0, 1)).max() < 12
    other = np.asarray(render(Scene((), "gray", texture=12), config), float)
    assert not np.array_equal(other, pixels)


def test_segmentation_counts_objects_in_reading_order():
    labels = segmentation(SCENE, CONFIG)
    assert labels.dtype == np.uint8
    assert labels[8, 24] == 1
    assert labels[40, 40] == 2
    assert (labels == 1).sum() == 64


def test_boxes_are_tight():
    assert boxes(SCENE, CONFIG) == ((20, 4, 28, 12), (33, 33, 47, 47))


def test_edges_are_the_rim_of_the_objects():
    outline = edges(SCENE, CONFIG)
    labels = segmentation(SCENE, CONFIG)
    assert set(np.unique(outline)) == {0, 255}
    assert (outline[labels == 0] == 0).all()
    assert (outline[labels == 1] > 0).sum() == 4 * 8 - 4
    assert outline[8, 24] == 0


def test_every_shape_looks_different_in_both_sizes():
    """At least 10 of the 64 (or 196) pixels of the square around it change from one shape to another."""
    for size in ("small", "large"):
        masks = [shape_coverage(shape, size, 16) for shape in SHAPES]
        differences = [abs(one - other).sum() for i, one in enumerate(masks) for other in masks[:i]]
        assert min(differences) > 10
