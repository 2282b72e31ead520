"""Training pictures: every image segment is read once, in memory or through a file; batches are pure in (seed, step)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.core.errors import InputError
from cm3.documents.document import Document, ImageSegment, TextSegment
from vqgan.config import VQConfig, VQTrainConfig
from vqgan.pictures import BatchOrder, Collecting, Pictures, collect_pictures, read_pictures, split_validation

CONFIG = VQConfig(image_size=16, downsample_factor=8)


def _document(number: int) -> Document:
    images = [ImageSegment(image=Image.new("RGB", (16, 16), (number, shade, 0))) for shade in (10, 20)]
    return Document(f"d{number}", (TextSegment("t"), images[0], images[1], ImageSegment(codes=np.zeros((2, 2), np.int64))))


def test_every_picture_of_every_document_is_taken(tmp_path: Path) -> None:
    pictures = collect_pictures(map(_document, range(3)), CONFIG, Collecting(tmp_path))
    assert list(pictures.ids) == ["d0#0", "d0#1", "d1#0", "d1#1", "d2#0", "d2#1"]
    assert pictures.take(np.array([3])).dtype == torch.uint8
    assert pictures.take(np.array([3, 4]))[:, :, 5, 5].tolist() == [[1, 20, 0], [2, 10, 0]]


def test_a_small_memory_limit_gives_the_same_pictures(tmp_path: Path) -> None:
    in_memory = collect_pictures(map(_document, range(9)), CONFIG, Collecting(tmp_path))
    mapped = collect_pictures(map(_document, range(9)), CONFIG, Collecting(tmp_path, memory_limit_gib=3 * 768 / 2**30))
    assert isinstance(mapped.arrays, np.memmap)
    assert not isinstance(in_memory.arrays, np.memmap)
    assert np.array_equal(mapped.arrays, in_memory.arrays)
    assert list(tmp_path.iterdir()) == []


def test_max_images_stops_the_reading(tmp_path: Path) -> None:
    assert len(collect_pictures(map(_document, range(9)), CONFIG, Collecting(tmp_path, max_images=5))) == 5


def test_validation_is_chosen_by_id_alone() -> None:
    ids = [f"p{number}" for number in range(200)]
    arrays = np.zeros((200, 3, 1, 1), np.uint8)
    training, held_out = split_validation(Pictures(ids, arrays), 0.1, 100)
    assert len(held_out) == 20
    assert sorted([*training, *held_out]) == list(range(200))
    shuffled = np.random.default_rng(0).permutation(200)
    again = split_validation(Pictures([ids[i] for i in shuffled], arrays), 0.1, 100)[1]
    assert {ids[i] for i in held_out} == {ids[shuffled[i]] for i in again}
    assert len(split_validation(Pictures(ids[:2], arrays[:2]), 0.1, 100)[1]) == 1
    assert len(split_validation(Pictures(ids[:1], arrays[:1]), 0.1, 100)[1]) == 0
    assert len(split_validation(Pictures(ids, arrays), 0.0, 100)[1]) == 0


def test_batches_pass_over_all_pictures_in_new_orders() -> None:
    order = BatchOrder(np.arange(100, 110), batch_size=4, seed=3)
    drawn = np.concatenate([order.step(step) for step in range(5)])  # two passes
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(100, 110))
    assert drawn[:10].tolist() != drawn[10:].tolist()


def test_batches_are_pure_in_seed_and_step() -> None:
    walked = BatchOrder(np.arange(10), 4, 3)
    first = [walked.step(step).tolist() for step in range(6)]
    jumped = BatchOrder(np.arange(10), 4, 3)
    assert [jumped.step(step).tolist() for step in (5, 2, 0)] == [first[5], first[2], first[0]]
    assert BatchOrder(np.arange(10), 4, 4).step(0).tolist() != first[0]


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert sorted(BatchOrder(np.arange(3), 7, 0).step(0).tolist())[:2] == [0, 0]


def test_missing_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set `data`"):
        read_pictures(VQTrainConfig(), CONFIG, tmp_path)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.jsonl").write_text('{"id": "a", "text": "no picture"}\n')
    with pytest.raises(InputError, match="holds no pictures"):
        read_pictures(VQTrainConfig(data=str(tmp_path / "words" / "a.jsonl")), CONFIG, tmp_path)
