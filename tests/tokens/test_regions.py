"""From marked pixels to codes: every touched code, through the tokenizer's own scaling and cropping."""

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.core.errors import InputError, UsageError
from cm3.tokens.regions import box_mask, image_mask, limit_runs, mask_cells


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
