"""Regions of a picture, marked in pixels, as cells of its code grid: what an edit by mask or box fills in anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cm3.core.errors import InputError, UsageError
from cm3.core.protocols import ImageTokenizer

KEEP, FILL = 255, 0
TOUCHED = 0.85  # a pixel in [-1, 1] below this is marked: more than what scaling leaks over an edge between two pixels (0.867)


def box_mask(size: tuple[int, int], box: Sequence[int]) -> np.ndarray:
    """(Y, X) bool: true inside `box` = (x0, y0, x1, y1), in pixels of a picture of `size` = (width, height); x1, y1 excluded.

    Raises `UsageError` for a box that is empty or reaches outside the picture.
    """
    if len(box) != 4:
        raise UsageError(f"a box is x0,y0,x1,y1, got {len(box)} numbers: {tuple(box)}")
    try:
        x0, y0, x1, y1 = (int(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"box is {tuple(box)}, expected four whole numbers x0,y0,x1,y1 in pixels") from None
    width, height = size
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UsageError(
            f"box {x0},{y0},{x1},{y1} does not lie inside the picture of {width}×{height} pixels; "
            "expected 0 ≤ x0 < x1 ≤ width and 0 ≤ y0 < y1 ≤ height"
        )
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def image_mask(mask: Image.Image | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(Y, X) bool from a picture (light: fill in) or an array (Y, X), of the same `size` = (width, height) as the picture.

    Arrays of bool and of nothing but 0 and 1 are taken as they are, other whole numbers count from 128 on as those of a picture
    do, floats from 0.5 on. Raises `InputError` for another size and for what is neither picture nor array.
    """
    if isinstance(mask, Image.Image):
        array = np.asarray(mask.convert("L")) >= 128
    else:
        array = _marked(np.asarray(mask))
    if array.shape != (size[1], size[0]):
        shape = "×".join(str(n) for n in reversed(array.shape))
        raise InputError(f"the mask has {shape} pixels, the picture {size[0]}×{size[1]}; they must be the same")
    return array


def mask_cells(mask: np.ndarray, tokenizer: ImageTokenizer) -> np.ndarray:
    """(h, w) bool: the codes that a mask (Y, X) bool over the original picture touches, in about a twelfth of a pixel or more.

    The mask goes through the tokenizer's own preprocessing, so it is scaled and cropped exactly as the picture is; one that is
    smaller than what the model sees is first repeated, so that its edges stay sharp. Raises `InputError` when no code is touched.
    """
    repeats = -(-tokenizer.image_size // min(mask.shape))
    enlarged = mask.repeat(repeats, axis=0).repeat(repeats, axis=1)
    picture = Image.fromarray(np.where(enlarged, FILL, KEEP).astype(np.uint8)).convert("RGB")
    pixels = tokenizer.preprocess([picture])[0, 0]  # (Y, X); padding is light, so it is kept
    rows, columns = tokenizer.grid_shape
    filled = (pixels < TOUCHED).reshape(rows, pixels.shape[0] // rows, columns, pixels.shape[1] // columns)
    cells: np.ndarray = filled.any(dim=3).any(dim=1).cpu().numpy()
    if not cells.any():
        raise InputError(
            "the region marks nothing of the picture as the model sees it, cut and scaled to "
            f"{tokenizer.image_size}×{tokenizer.image_size} pixels; mark more, inside of what is not cut off"
        )
    return cells


def _marked(values: np.ndarray) -> np.ndarray:
    """What an array of a mask marks, as bool of the same shape."""
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise InputError(
            f"the mask is an array of {values.dtype} with {values.ndim} axes; expected a picture, or an array (height, width) "
            "of bool or numbers"
        )
    if values.dtype.kind == "f":
        return values >= 0.5
    return values.astype(bool) if values.size == 0 or (values.min() >= 0 and values.max() <= 1) else values >= 128


def limit_runs(cells: np.ndarray, most: int) -> np.ndarray:
    """The cells (h, w), with the smallest gaps between their runs in raster order closed until at most `most` ≥ 1 are left."""
    flat = cells.reshape(-1).copy()
    edges = np.flatnonzero(np.diff(flat.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    gaps = edges[1:, 0] - edges[:-1, 1]
    for index in np.argsort(gaps, kind="stable")[: max(0, len(edges) - most)]:
        flat[edges[index, 1] : edges[index + 1, 0]] = True
    return flat.reshape(cells.shape)
