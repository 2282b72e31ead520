"""Boxes and pixel masks to codes, against a loop over pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.core.errors import InputError
from cm3.decode.regions import box_mask, pixel_mask


@settings(max_examples=60, deadline=None, derandomize=True)
@given(x0=st.integers(0, 46), y0=st.integers(0, 46), width=st.integers(1, 40), height=st.integers(1, 40))
def test_box_is_the_pixel_mask_of_its_pixels(x0: int, y0: int, width: int, height: int) -> None:
    box = (x0, y0, min(x0 + width, 48), min(y0 + height, 48))
    pixels = np.zeros((48, 48), bool)
    pixels[box[1] : box[3], box[0] : box[2]] = True
    expected = np.zeros((6, 6), bool)
    for y in range(48):
        for x in range(48):
            expected[y // 8, x // 8] |= pixels[y, x]
    assert np.array_equal(pixel_mask(pixels, (6, 6)), expected)
    assert np.array_equal(box_mask(box, (48, 48), (6, 6)), expected)


def test_picture_and_grid_need_not_be_square() -> None:
    mask = box_mask((50, 0, 60, 10), size=(100, 40), grid_shape=(4, 5))
    assert np.argwhere(mask).tolist() == [[0, 2]]


def test_a_box_over_the_border_is_cut() -> None:
    assert box_mask((-10, -10, 8, 8), (48, 48), (6, 6)).sum() == 1


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5, 5, 5, 9), "no area"),
        ((9, 5, 5, 9), "no area"),
        ((48, 0, 60, 10), "outside the picture of 48 × 48"),
        ((-9, 0, 0, 10), "outside"),
        ((0, 0, 48, 48), "whole picture"),
    ],
)
def test_unusable_boxes_are_refused(box: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        box_mask(box, (48, 48), (6, 6))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((48, 48), bool), "nothing is masked"),
        (np.ones((48, 48), bool), "whole picture"),
        (np.ones((48, 48, 3), bool), "shape"),
        (np.ones((4, 48), bool), "shape"),
    ],
)
def test_unusable_masks_are_refused(mask: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pixel_mask(mask, (6, 6))
