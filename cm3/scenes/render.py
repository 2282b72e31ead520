"""From a scene to its picture, and to the maps that go with it: segmentation, edges, boxes.

Rendering is a pure function of (scene, config). Shapes are drawn once per size as coverage masks in [0, 1] (8×8 samples per
pixel, so edges are softly blended), cached, and laid over the background. Large shapes fill 7/8 of their cell, small ones
half of it; at 48 pixels and no jitter every object is made of four 8×8 patches that repeat exactly from scene to scene.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from cm3.scenes.world import BACKGROUNDS, COLORS, Scene, SceneObject, WorldConfig

_SAMPLES = 8  # per pixel and axis
_GRADIENT = 14.0  # largest change of the background by the gradient, in gray levels
_NOISE = 4.0  # standard deviation of the noise, in gray levels


class Box(NamedTuple):
    """Pixel box, half-open: columns [left, right), rows [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int


def render(scene: Scene, config: WorldConfig) -> Image.Image:
    """The picture of the scene: PIL RGB, `config.image_size` pixels on a side."""
    canvas = _background(scene, config)  # (Y, X, 3)
    for item in scene.objects:
        window = canvas[_window(item, config)]
        coverage = object_coverage(item, config)[..., None]  # (y, x, 1)
        window += coverage * (np.array(COLORS[item.color], np.float32) - window)
    return Image.fromarray((canvas + 0.5).clip(0, 255).astype(np.uint8))


def segmentation(scene: Scene, config: WorldConfig) -> np.ndarray:
    """(Y, X) uint8: 0 on the background, i on the i-th object of `scene.objects`, counted from 1."""
    labels = np.zeros((config.image_size, config.image_size), np.uint8)  # (Y, X)
    for label, item in enumerate(scene.objects, start=1):
        labels[_window(item, config)][object_coverage(item, config) >= 0.5] = label
    return labels


def edges(scene: Scene, config: WorldConfig) -> np.ndarray:
    """(Y, X) uint8: 255 on the outermost pixels of every object, 0 elsewhere."""
    labels = np.pad(segmentation(scene, config), 1)  # (Y + 2, X + 2)
    middle = labels[1:-1, 1:-1]
    neighbors = (labels[:-2, 1:-1], labels[2:, 1:-1], labels[1:-1, :-2], labels[1:-1, 2:])
    outline = np.any([neighbor != middle for neighbor in neighbors], axis=0) & (middle > 0)
    return outline.astype(np.uint8) * 255


def boxes(scene: Scene, config: WorldConfig) -> tuple[Box, ...]:
    """The tightest box around the segmentation of every object, in the order of `scene.objects`."""
    labels = segmentation(scene, config)
    found = []
    for label in range(1, len(scene.objects) + 1):
        rows, columns = np.nonzero(labels == label)
        found.append(Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1))
    return tuple(found)


def object_coverage(item: SceneObject, config: WorldConfig) -> np.ndarray:
    """(cell, cell) float32 in [0, 1], read-only: how much of each pixel of its cell the object covers."""
    return shape_coverage(item.shape, item.size, config.cell_size, item.offset)


@lru_cache(maxsize=4096)
def shape_coverage(shape: str, size: str, cell_size: int, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """(cell_size, cell_size) float32 in [0, 1], read-only: the shape shifted by `offset` (down, right) from the middle."""
    ticks = (np.arange(cell_size * _SAMPLES) + 0.5) / _SAMPLES - cell_size / 2
    radius = _extent(size, cell_size) / 2
    y, x = np.meshgrid((ticks - offset[0]) / radius, (ticks - offset[1]) / radius, indexing="ij")
    inside = _inside(shape, y, x).reshape(cell_size, _SAMPLES, cell_size, _SAMPLES)
    coverage = inside.mean(axis=(1, 3), dtype=np.float32)
    coverage.flags.writeable = False  # shared by all renderings
    return coverage


def slack(size: str, cell_size: int) -> int:
    """How many pixels an object of `size` can be shifted each way without leaving its cell."""
    return (cell_size - _extent(size, cell_size)) // 2


def _extent(size: str, cell_size: int) -> int:
    """Width and height in pixels of the square that a shape of `size` fills."""
    return cell_size * 7 // 8 if size == "large" else cell_size // 2


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whether points, given in the square [-1, 1]², lie in the shape."""
    if shape == "circle":
        return y**2 + x**2 <= 1
    if shape == "square":
        return np.maximum(abs(y), abs(x)) <= 1
    if shape == "triangle":
        return (abs(y) <= 1) & (abs(x) <= (y + 1) / 2)
    return abs(y) + abs(x) <= 1  # diamond


def _window(item: SceneObject, config: WorldConfig) -> tuple[slice, slice]:
    cell = config.cell_size
    row, column = item.cell
    return slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell)


def _background(scene: Scene, config: WorldConfig) -> np.ndarray:
    """(Y, X, 3) float32: the plain color, with the texture of `scene.texture` at level `config.texture`."""
    size = config.image_size
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    if config.texture == 0:
        return canvas
    rng = np.random.default_rng(scene.texture)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope = (np.sin(angle) * ramp[:, None] + np.cos(angle) * ramp) / np.sqrt(2)  # (Y, X) in [-1, 1]
    canvas += (_GRADIENT * slope[..., None]).astype(np.float32)
    if config.texture == 2:
        canvas += rng.normal(0, _NOISE, (size, size, 1)).astype(np.float32)
    return canvas
