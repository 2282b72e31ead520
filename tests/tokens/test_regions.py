"""From marked pixels to codes: every touched code, through the tokenizer's own scaling and cropping."""

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.core.errors import InputError, UsageError
from cm3.tokens.regions import box_mask, image_mask, limit_runs, mask_cells
from vqgan.config import PreprocessConfig
from vqgan.preprocessing import images_to_pixels


class CropTokenizer:
    """Crops the middle square of a picture and scales it to 6 × 6 pixels, 3 × 3 codes."""

    grid_shape, image_size = (3, 3), 6

    def preprocess(self, images):
        arrays = []
        for image in images:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            cropped = image.crop((left, top, left + side, top + side)).resize((6, 6), Image.Resampling.BOX)
            arrays.append(np.asarray(cropped, np.float32).transpose(2, 0, 1) / 127.5 - 1)
        return torch.from_numpy(np.stack(arrays))


def test_a_box_excludes_its_far_edges():
    mask = box_mask((5, 4), (1, 0, 3, 2))
    assert mask.shape == (4, 5)
    assert np.argwhere(mask).tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, 0, 6, 2), (0, 0, 2, 5), (2, 0, 2, 2), (3, 0, 2, 2)])
def test_boxes_outside(box):
    with pytest.raises(UsageError, match="5×4"):
        box_mask((5, 4), box)


def test_masks_as_pictures_and_arrays():
    array = np.zeros((4, 5), bool)
    array[1, 2] = True
    picture = Image.fromarray((array * 255).astype(np.uint8))
    assert np.array_equal(image_mask(picture, (5, 4)), array)
    assert np.array_equal(image_mask(array.astype(int), (5, 4)), array)
    with pytest.raises(InputError, match="4×5 pixels, the picture 5×4"):
        image_mask(array.T, (5, 4))


def test_numbers_of_a_mask():
    values = np.array([[0, 1, 127, 128, 255]])
    assert image_mask(values.astype(np.uint8), (5, 1)).tolist() == [[False, False, False, True, True]]
    assert image_mask((values > 127).astype(np.uint8), (5, 1)).tolist() == [[False, False, False, True, True]]
    assert image_mask(np.array([[0.0, 0.49, 0.5, 1.0, np.nan]]), (5, 1)).tolist() == [[False, False, True, True, False]]


@pytest.mark.parametrize("mask", ["mask.png", b"\x89PNG", None, np.zeros((4, 5, 3)), np.zeros((4, 5), complex)])
def test_what_is_no_mask(mask):
    with pytest.raises(InputError, match="expected a picture, or an array") as raised:
        image_mask(mask, (5, 4))
    assert "\n" not in str(raised.value)


class FittingTokenizer:
    """8 × 8 codes of 8 × 8 pixels, scaled as the image tokenizers of this project scale."""

    grid_shape, image_size = (8, 8), 64

    def preprocess(self, images):
        return images_to_pixels(images, 64, PreprocessConfig())


@pytest.mark.parametrize("side", [24, 64, 100, 200, 256, 1000, 1024])
def test_a_small_box_marks_its_code_and_no_other(side):
    corner, width = round(side * 13 / 64), max(1, side // 128)
    cells = mask_cells(box_mask((side, side), (corner, corner, corner + width, corner + width)), FittingTokenizer())
    assert np.argwhere(cells).tolist() == [[1, 1]]


@pytest.mark.parametrize("side", [8, 24, 32, 64, 128, 200, 256, 512, 1000])
@pytest.mark.parametrize("cells", [(0, 0, 1, 1), (2, 3, 5, 4), (1, 0, 8, 7)])
def test_a_box_between_the_edges_of_codes_marks_these_alone(side, cells):
    marked = mask_cells(box_mask((side, side), tuple(side * edge // 8 for edge in cells)), FittingTokenizer())
    assert np.array_equal(marked, box_mask((8, 8), cells))


def test_every_touched_code_is_marked():
    mask = np.zeros((6, 6), bool)
    mask[1, 1] = mask[5, 3] = True
    assert np.argwhere(mask_cells(mask, CropTokenizer())).tolist() == [[0, 0], [2, 1]]


def test_the_mask_is_cropped_as_the_picture_is():
    mask = np.zeros((6, 10), bool)
    mask[0, 2] = True  # the first column inside the crop
    assert np.argwhere(mask_cells(mask, CropTokenizer())).tolist() == [[0, 0]]
    outside = np.zeros((6, 10), bool)
    outside[:, :2] = True
    with pytest.raises(InputError, match="marks nothing"):
        mask_cells(outside, CropTokenizer())


def test_runs_are_closed_where_it_costs_least():
    cells = np.array([[1, 0, 1, 0], [0, 0, 1, 1]], bool)
    assert np.array_equal(limit_runs(cells, 3), cells)
    assert limit_runs(cells, 2).astype(int).tolist() == [[1, 1, 1, 0], [0, 0, 1, 1]]
    assert limit_runs(cells, 1).astype(int).tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert not limit_runs(np.zeros((2, 2), bool), 1).any()
