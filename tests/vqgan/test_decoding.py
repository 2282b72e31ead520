"""Codes back to pictures: the pixels of the tokenizer, as PNG in whatever format; foreign codes are rejected by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.core.errors import BudgetError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.readers import read_documents
from cm3.documents.records import ReadOptions
from cm3.documents.writers import write_documents
from vqgan.decoding import DecodeConfig, decode_documents
from vqgan.encoding import EncodeConfig, encode_documents
from vqgan.tokenizer import VQTokenizer

Draw = Callable[[int], Image.Image]


def _where(tmp_path: Path, data: Path, out: str) -> dict[str, object]:
    return {"tokenizer": str(tmp_path / "tokenizer"), "data": str(data), "out": str(tmp_path / out), "piece_size": 7}


def _codes(*numbers: int) -> ImageSegment:
    return ImageSegment(codes=np.array(numbers).reshape(3, 3))


@pytest.mark.parametrize("format", ["jsonl", "webdataset"])
def test_back_to_pictures(format: str, tokenizer: VQTokenizer, picture_folder: Path, tmp_path: Path) -> None:
    encode_documents(EncodeConfig(**_where(tmp_path, picture_folder, "codes"), format=format))  # type: ignore[arg-type]
    config = DecodeConfig(**_where(tmp_path, tmp_path / "codes", "decoded"), format=format, workers=2)  # type: ignore[arg-type]
    assert decode_documents(config).ok == 40
    originals = {document.id: document.images[0].load() for document in read_documents(picture_folder)}
    decoded = list(read_documents(tmp_path / "decoded", format, options=ReadOptions(decode=False)))
    assert [document.id for document in decoded] == sorted(originals)
    for document in decoded:
        segment = document.images[0]
        assert (segment.encoded or segment.path.read_bytes()).startswith(b"\x89PNG")  # type: ignore[union-attr]
        expected = tokenizer.postprocess(tokenizer.decode(tokenizer.encode(tokenizer.preprocess([originals[document.id]]))))[0]
        difference = np.asarray(segment.load(), int) - np.asarray(expected, int)
        assert np.abs(difference).max() <= 1


def test_texts_order_meta_and_pictures_stay(tokenizer: VQTokenizer, block_picture: Draw, tmp_path: Path) -> None:
    block_picture(0).save(tmp_path / "photo.jpg")
    photo = ImageSegment(path=tmp_path / "photo.jpg")
    mixed = (_codes(*range(9)), TextSegment("between"), photo, _codes(*range(9, 18)))
    write_documents([Document("a", mixed, {"n": 1}), Document("b", (TextSegment("words"),))], tmp_path / "data", "jsonl")
    decode_documents(DecodeConfig(**_where(tmp_path, tmp_path / "data", "out"), batch_size=1))  # type: ignore[arg-type]
    first, second = read_documents(tmp_path / "out")
    assert (first.text, dict(first.meta), second.text) == ("between", {"n": 1}, "words")
    assert [type(segment).__name__ for segment in first.segments] == [type(segment).__name__ for segment in mixed]
    assert first.images[1].path.read_bytes() == (tmp_path / "photo.jpg").read_bytes()  # type: ignore[union-attr]
    expected = tokenizer.postprocess(tokenizer.decode(torch.arange(18).view(2, 3, 3)))
    for segment, picture in zip((first.images[0], first.images[2]), expected):
        assert np.abs(np.asarray(segment.load(), int) - np.asarray(picture, int)).max() <= 1


@pytest.mark.usefixtures("tokenizer")
def test_codes_of_another_tokenizer_are_rejected_by_name(tmp_path: Path) -> None:
    documents = [Document(f"good-{number}", (_codes(*range(9)),)) for number in range(3)]
    foreign = [
        Document("a", (TextSegment("x"), _codes(*range(56, 65)))),
        Document("b", (ImageSegment(codes=np.eye(2, dtype=int)),)),
    ]
    write_documents([*documents, *foreign], tmp_path / "data", "jsonl")
    where = _where(tmp_path, tmp_path / "data", "pictures")
    sentence = (
        r"wrong_codes 2.*: a picture 0: codes of shape \(3, 3\) from 56 to 64, expected \(3, 3\) in \[0, 64\); use the tokenizer"
    )
    with pytest.raises(BudgetError, match=sentence):
        decode_documents(DecodeConfig(**where))  # type: ignore[arg-type]
    report = decode_documents(DecodeConfig(**where, budget=0.4))  # type: ignore[arg-type]
    assert (report.seen, report.ok, report.rejected) == (5, 3, {"wrong_codes": 2})
    assert [document.id for document in read_documents(tmp_path / "pictures")] == ["good-0", "good-1", "good-2"]
    assert json.loads((tmp_path / "pictures" / "report.json").read_text())["rejected"] == {"wrong_codes": 2}
