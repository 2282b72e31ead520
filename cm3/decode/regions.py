"""Which codes of a picture a region of its pixels covers: boxes and pixel masks to token masks.

A code stands for a cell of the picture; it is masked when any pixel of its cell is. Boxes and masks are given in the
pixels of the picture itself, whatever size the image tokenizer works at.
"""

from __future__ import annotations

import numpy as np

from cm3.core.errors import InputError


def box_mask(box: tuple[float, float, float, float], size: tuple[int, int], grid_shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: the codes that the box (x0, y0, x1, y1) of a picture of `size` (width, height) touches.

    x1 and y1 lie one past the last pixel. A box that reaches over the border is cut there. Raises `InputError` for a box
    without area, one outside the picture, and one that covers all of it.
    """
    (x0, y0, x1, y1), (width, height), (rows, columns) = box, size, grid_shape
    if not (x0 < x1 and y0 < y1):
        raise InputError(f"the box {box} has no area; give x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise InputError(f"the box {box} lies outside the picture of {width} × {height} pixels")
    row, column = np.arange(rows), np.arange(columns)
    in_rows = (row * height / rows < y1) & ((row + 1) * height / rows > y0)
    in_columns = (column * width / columns < x1) & ((column + 1) * width / columns > x0)
    return _checked(in_rows[:, None] & in_columns[None, :])


def pixel_mask(mask: np.ndarray, grid_shape: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: the codes under the true pixels of a mask (Y, X).

    Raises `InputError` for a mask of the wrong shape, one without true pixels, and one that covers every code.
    """
    rows, columns = grid_shape
    if mask.ndim != 2 or mask.shape[0] < rows or mask.shape[1] < columns:
        raise InputError(f"a mask is one value per pixel, at least {rows} × {columns} of them; got shape {mask.shape}")
    ys, xs = np.nonzero(mask)
    codes = np.zeros(grid_shape, bool)
    codes[ys * rows // mask.shape[0], xs * columns // mask.shape[1]] = True
    return _checked(codes)


def _checked(codes: np.ndarray) -> np.ndarray:
    if not codes.any():
        raise InputError("nothing is masked: choose a region that covers at least one pixel of the picture")
    if codes.all():
        raise InputError("the whole picture is masked, nothing of it would be left: generate a new picture instead")
    return codes
