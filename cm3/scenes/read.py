"""Reading a scene back from the pixels of a picture, and from nothing else: the ruler for everything that draws.

Every cell is compared with every rendering it could hold (nothing, or any shape, color and size, on every background, at
every shift that the jitter allows) by squared pixel distance. The background is the one whose best cells fit best in total; each
cell is then the nearest rendering on it. Distances of many cells to all renderings are one matrix product. Pictures of more than
48 pixels are read at 48: what is in a scene is as plain there, and the table of renderings stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from math import ceil

import numpy as np
from einops import rearrange
from PIL import Image

from cm3.core.errors import InputError
from cm3.scenes.render import shape_coverage, slack
from cm3.scenes.world import BACKGROUNDS, COLORS, GRID, SHAPES, SIZES, Scene, SceneObject, WorldConfig

_Look = tuple[str, str, str, tuple[int, int]]  # shape, color, size, offset
_BATCH = 256
_READING_SIZE = 48


def read_scene(image: Image.Image, config: WorldConfig | None = None) -> Scene:
    """The scene nearest to the picture, which may have any size; `config` says how large scenes are rendered (default 48).

    Shifts of objects are found to the pixel of a 48-pixel picture, where `config.jitter` allows any.
    """
    return read_scenes([image], config)[0]


def read_scenes(images: Sequence[Image.Image], config: WorldConfig | None = None) -> list[Scene]:
    """`read_scene` for many pictures at once."""
    config = _reading_config(config or WorldConfig())
    scenes: list[Scene] = []
    for start in range(0, len(images), _BATCH):
        pixels = np.stack([_pixels(image, config.image_size) for image in images[start : start + _BATCH]])
        scenes += _read(pixels, config)
    return scenes


def _reading_config(config: WorldConfig) -> WorldConfig:
    """The same world at the size at which it is read, with the jitter to scale."""
    if config.image_size <= _READING_SIZE:
        return config
    jitter = ceil(config.jitter * _READING_SIZE / config.image_size)
    return WorldConfig(image_size=_READING_SIZE, jitter=jitter)


def _pixels(image: Image.Image, size: int) -> np.ndarray:
    """(Y, X, 3) float32 in [-1, 1]."""
    if min(image.size) < 1:
        raise InputError(f"picture of {image.size[0]}×{image.size[1]} pixels holds no scene")
    image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BOX)
    return np.asarray(image, np.float32) / 127.5 - 1


def _read(pixels: np.ndarray, config: WorldConfig) -> list[Scene]:
    """(B, Y, X, 3) to B scenes."""
    looks = _looks(config)
    templates, energies = _templates(config)  # (D, K·L), (K·L)
    cells = rearrange(pixels, "b (r y) (c x) d -> (b r c) (y x d)", r=GRID, c=GRID)
    distances = energies - 2 * cells @ templates  # (B·9, K·L), less each cell's own energy, which no choice changes
    distances = rearrange(distances, "(b n) (k l) -> b n k l", n=GRID * GRID, k=len(BACKGROUNDS))
    background = distances.min(axis=3).sum(axis=1).argmin(axis=1)  # (B,)
    nearest = distances[np.arange(len(pixels)), :, background].argmin(axis=2)  # (B, 9)
    names = tuple(BACKGROUNDS)
    return [_scene(row, names[index], looks) for row, index in zip(nearest.tolist(), background.tolist(), strict=True)]


def _scene(nearest: list[int], background: str, looks: tuple[_Look | None, ...]) -> Scene:
    objects = []
    for index, choice in enumerate(nearest):
        if (look := looks[choice]) is not None:
            shape, color, size, offset = look
            objects.append(SceneObject(divmod(index, GRID), shape, color, size, offset))
    return Scene(tuple(objects), background)


@lru_cache(maxsize=8)
def _looks(config: WorldConfig) -> tuple[_Look | None, ...]:
    """Everything a cell can hold; None is nothing."""
    looks: list[_Look | None] = [None]
    for shape, color, size in product(SHAPES, COLORS, SIZES):
        reach = min(config.jitter, slack(size, config.cell_size))
        shifts = range(-reach, reach + 1)
        looks += [(shape, color, size, offset) for offset in product(shifts, shifts)]
    return tuple(looks)


@lru_cache(maxsize=8)
def _templates(config: WorldConfig) -> tuple[np.ndarray, np.ndarray]:
    """Renderings of every look on every background, one per column (D, K·L), and their squared lengths (K·L); read-only."""
    columns = [_template(look, ground, config) for ground in BACKGROUNDS.values() for look in _looks(config)]
    templates = np.stack(columns, axis=1)
    energies = (templates**2).sum(axis=0)
    templates.flags.writeable = energies.flags.writeable = False
    return templates, energies


def _template(look: _Look | None, ground: tuple[int, int, int], config: WorldConfig) -> np.ndarray:
    """(cell · cell · 3,) float32 in [-1, 1]."""
    cell = np.empty((config.cell_size, config.cell_size, 3), np.float32)
    cell[:] = ground
    if look is not None:
        shape, color, size, offset = look
        coverage = shape_coverage(shape, size, config.cell_size, offset)[..., None]
        cell += coverage * (np.array(COLORS[color], np.float32) - cell)
    return cell.reshape(-1) / 127.5 - 1
