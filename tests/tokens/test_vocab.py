"""Id ranges: the default layout, a released layout, and what is refused."""

import json

import numpy as np
import pytest
import torch

from cm3.core.errors import UsageError
from cm3.tokens import Vocab


def test_default_layout_is_contiguous():
    vocab = Vocab(text_size=300, codebook_size=64, grid_shape=(3, 4), num_masks=2)
    assert (vocab.pad_id, vocab.bos_id, vocab.eos_id, vocab.break_id, vocab.eoss_id) == (0, 1, 2, 3, 4)
    assert (vocab.mask_id(0), vocab.mask_id(1), vocab.mask_stop) == (5, 6, 7)
    assert (vocab.text_start, vocab.text_stop, vocab.image_start, vocab.image_stop, vocab.size) == (7, 307, 307, 371, 371)
    assert vocab.num_image_tokens == 12


def test_every_id_has_exactly_one_meaning():
    vocab = Vocab(50, 20, (2, 2), num_masks=3)
    ids = np.arange(vocab.size)
    singles = np.isin(ids, [vocab.pad_id, vocab.bos_id, vocab.eos_id, vocab.break_id, vocab.eoss_id])
    meanings = vocab.is_text(ids).astype(int) + vocab.is_image(ids) + vocab.is_mask(ids) + singles
    assert (meanings == 1).all()


def test_chameleon_layout_can_be_expressed():
    vocab = Vocab(
        text_size=65536 - 8725, codebook_size=8192, grid_shape=(32, 32), num_masks=4, bos_id=0, pad_id=1, eos_id=2,
        image_start=4, eoss_id=8196, break_id=8197, mask_start=8711, text_start=8725, size=65536,
    )  # fmt: skip
    assert (vocab.image_start, vocab.image_stop, vocab.size, vocab.num_image_tokens) == (4, 8196, 65536, 1024)
    assert vocab.is_image(8195)
    assert not vocab.is_image(8196)
    assert vocab.codes(vocab.image_ids(77)) == 77


def test_ids_are_judged_in_ints_arrays_and_tensors_alike():
    vocab = Vocab(50, 20, (2, 2))
    ids = [0, vocab.text_start, vocab.text_stop - 1, vocab.image_start, vocab.image_stop - 1]
    expected = [False, False, False, True, True]
    assert [vocab.is_image(id_) for id_ in ids] == expected
    assert vocab.is_image(np.array(ids)).tolist() == expected
    assert vocab.is_image(torch.tensor(ids)).tolist() == expected
    assert vocab.codes(vocab.image_ids(torch.arange(20))).tolist() == list(range(20))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_start": 30}, "overlap"),
        ({"bos_id": 0}, "overlap"),
        ({"mask_start": 2}, "overlap"),
        ({"text_start": 10}, "overlap"),
        ({"size": 60}, "too small"),
        ({"pad_id": -3}, "negative"),
        ({"num_masks": 0}, "num_masks"),
        ({"codebook_size": 0}, "codebook_size"),
        ({"grid_shape": (0, 4)}, "grid_shape"),
        ({"grid_shape": (4, 4, 4)}, "grid_shape"),
    ],
)
def test_impossible_layouts_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        Vocab(**{"text_size": 50, "codebook_size": 20, "grid_shape": (2, 2), **fields})


def test_mask_ids_beyond_the_range_are_refused():
    vocab = Vocab(50, 20, (2, 2), num_masks=3)
    for index in (-1, 3):
        with pytest.raises(UsageError, match="num_masks=3"):
            vocab.mask_id(index)


def test_json_round_trip_and_fingerprint():
    vocab = Vocab(50, 20, (2, 2), num_masks=3, size=128)
    again = Vocab.from_json(json.loads(json.dumps(vocab.to_json())))
    assert again == vocab
    assert again.fingerprint == vocab.fingerprint != Vocab(50, 20, (2, 2), num_masks=4, size=128).fingerprint
    with pytest.raises(UsageError, match="no field 'text_sizes'"):
        Vocab.from_json({**vocab.to_json(), "text_sizes": 3})
    with pytest.raises(UsageError, match="lacks the field 'grid_shape'"):
        Vocab.from_json({"text_size": 50, "codebook_size": 20})
