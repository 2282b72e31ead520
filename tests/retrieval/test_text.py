"""The text tokenizer of an encoder: frames, cuts and pads as CLIP needs it, and takes no orders from captions."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from cm3.core.errors import ArtefactError
from retrieval.encoders.text import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    encode_padded,
    load_text_tokenizer,
    save_text_tokenizer,
    train_text_tokenizer,
)

TEXTS = ["a red circle", "a blue square at the left", "ein größerer Kreis"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_text_tokenizer(train_text_tokenizer(TEXTS, 400), tmp_path, 16)
    return tmp_path


def test_every_text_is_framed_and_padded(folder: Path) -> None:
    ids, mask = encode_padded(load_text_tokenizer(folder), [*TEXTS, ""], 16)
    assert (ids[:, 0] == BOS_ID).all()
    assert ids.shape == mask.shape
    for row, length in enumerate(mask.sum(1)):
        assert ids[row, length - 1] == EOS_ID
        assert (ids[row, length:] == PAD_ID).all()
        assert (mask[row, :length] == 1).all()
    assert mask[3].sum() == 2


def test_eos_is_not_2_which_transformers_pools_differently() -> None:
    assert EOS_ID != 2


def test_a_long_text_keeps_its_end_mark(folder: Path) -> None:
    ids, _ = encode_padded(load_text_tokenizer(folder), ["red " * 100], 8)
    assert ids.shape == (1, 8)
    assert ids[0, -1] == EOS_ID


def test_special_tokens_in_a_caption_are_text(folder: Path) -> None:
    ids, _ = encode_padded(load_text_tokenizer(folder), ["a <eos> b <pad> <bos>"], 64)
    assert (ids == EOS_ID).sum() == 1
    assert (ids == BOS_ID).sum() == 1
    assert (ids == PAD_ID).sum() == 0


def test_case_is_ignored(folder: Path) -> None:
    tokenizer = load_text_tokenizer(folder)
    assert (
        encode_padded(tokenizer, ["A Red CIRCLE"], 16)[0].tolist() == encode_padded(tokenizer, ["a red circle"], 16)[0].tolist()
    )


def test_transformers_reads_the_same_ids(folder: Path) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)(TEXTS, padding=True, return_tensors="np")
    ids, mask = encode_padded(load_text_tokenizer(folder), TEXTS, 64)
    assert (theirs["input_ids"] == ids).all()
    assert (theirs["attention_mask"] == mask).all()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe"])
def test_an_unusable_file_is_an_artefact_error(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ArtefactError, match="tokenizer"):
        load_text_tokenizer(tmp_path)
