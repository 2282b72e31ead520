"""Data sets to codes: the codes of the tokenizer, in whatever format, and every input accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3.core.errors import BudgetError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.readers import read_documents
from cm3.documents.writers import write_documents
from vqgan.encoding import EncodeConfig, encode_documents
from vqgan.tokenizer import VQTokenizer

Draw = Callable[[int], Image.Image]


def _config(tmp_path: Path, data: Path, out: str = "codes", **changes: object) -> EncodeConfig:
    settings = {"tokenizer": str(tmp_path / "tokenizer"), "data": str(data), "out": str(tmp_path / out)}
    return EncodeConfig.model_validate({**settings, "batch_size": 4, "piece_size": 7, **changes})


def _content(folder: Path) -> list[tuple[str, list[object], dict[str, object]]]:
    """The documents with codes in `folder` as values that compare."""
    documents = []
    for document in read_documents(folder):
        parts = [part.text if isinstance(part, TextSegment) else part.codes.tolist() for part in document.segments]  # type: ignore[union-attr]
        documents.append((document.id, parts, dict(document.meta)))
    return documents


@pytest.mark.parametrize("format", ["jsonl", "webdataset"])
def test_codes_are_those_of_the_tokenizer(format: str, tokenizer: VQTokenizer, picture_folder: Path, tmp_path: Path) -> None:
    report = encode_documents(_config(tmp_path, picture_folder, format=format, workers=2))
    assert (report.seen, report.ok) == (40, 40)
    coded = {document.id: document for document in read_documents(tmp_path / "codes", format)}
    for document in read_documents(picture_folder):
        [segment] = coded[document.id].images
        expected = tokenizer.encode(tokenizer.preprocess([document.images[0].load()]))[0]
        assert segment.codes is not None
        assert np.array_equal(segment.codes, expected.numpy())
    assert not (tmp_path / "codes.partial").exists()


@pytest.mark.parametrize("format", ["jsonl", "webdataset"])
def test_texts_order_meta_and_several_pictures_stay(
    format: str, tokenizer: VQTokenizer, block_picture: Draw, tmp_path: Path
) -> None:
    pictures = [ImageSegment(image=block_picture(number)) for number in range(5)]
    given = ImageSegment(codes=np.arange(9).reshape(3, 3))
    documents = [
        Document("a/b", (pictures[0], TextSegment("before"), pictures[1], pictures[2], TextSegment(" after\n")), {"n": 1}),
        Document("words", (TextSegment("words"),), {"text": "another"}),
        Document("edit", (TextSegment("red"), pictures[3], pictures[4]), {"images": ["target", "source"]}),
        Document("mixed", (given, pictures[0])),
    ]
    write_documents(documents, tmp_path / "data", "jsonl")
    encode_documents(_config(tmp_path, tmp_path / "data", format=format, batch_size=3, piece_size=2))
    grids = tokenizer.encode(tokenizer.preprocess([block_picture(number) for number in range(5)])).tolist()
    assert _content(tmp_path / "codes") == [
        ("a/b", [grids[0], "before", grids[1], grids[2], " after\n"], {"n": 1}),
        ("words", ["words"], {"text": "another"}),
        ("edit", ["red", grids[3], grids[4]], {"images": ["target", "source"]}),
        ("mixed", [np.arange(9).reshape(3, 3).tolist(), grids[0]], {}),
    ]


@pytest.mark.usefixtures("tokenizer")
@pytest.mark.parametrize("kind", ["jsonl", "webdataset"])
def test_every_kind_of_source_gives_the_same_codes(kind: str, picture_folder: Path, tmp_path: Path) -> None:
    write_documents(read_documents(picture_folder), tmp_path / "data", kind)
    for out, data in (("a", picture_folder), ("b", tmp_path / "data")):
        encode_documents(_config(tmp_path, data, out))
    assert len(_content(tmp_path / "a")) == 40
    assert _content(tmp_path / "a") == _content(tmp_path / "b")


@pytest.mark.usefixtures("tokenizer")
def test_shards_hold_a_piece_each(picture_folder: Path, tmp_path: Path) -> None:
    for number in (0, *range(7, 14)):  # all of the second piece, found out when they are decoded
        path = picture_folder / f"{number:03}.png"
        path.write_bytes(path.read_bytes()[:70])
    encode_documents(_config(tmp_path, picture_folder, format="webdataset", budget=0.5))
    tars = sorted(path.name for path in (tmp_path / "codes").glob("*.tar"))
    counts = [json.loads((tmp_path / "codes" / f"{name}.json").read_text())["samples"] for name in tars]
    assert (tars, counts) == ([f"{number:06}.tar" for number in range(5)], [6, 7, 7, 7, 5])


@pytest.mark.usefixtures("tokenizer")
def test_every_input_is_accounted_for(picture_folder: Path, tmp_path: Path) -> None:
    whole = (picture_folder / "007.png").read_bytes()
    (picture_folder / "007.png").write_bytes(whole[: len(whole) // 2])
    (picture_folder / "008.png").write_bytes(b"")
    with pytest.raises(BudgetError, match=r"2 of 40 .*all counts are in .*codes\.partial/report\.json"):
        encode_documents(_config(tmp_path, picture_folder))
    report = encode_documents(_config(tmp_path, picture_folder, budget=0.1))
    assert (report.seen, report.ok, report.num_rejected) == (40, 38, 2)
    assert report.rejected == {"empty_image": 1, "truncated_image": 1}
    assert len((tmp_path / "codes" / "documents.jsonl").read_text().splitlines()) == 38
    kept = json.loads((tmp_path / "codes" / "report.json").read_text())
    assert (kept["seen"], kept["ok"], kept["rejected"]) == (40, 38, report.rejected)
    assert {problem["reason"] for problem in kept["problems"]} == set(report.rejected)
    assert encode_documents(_config(tmp_path, picture_folder, budget=0.1)) == report


@pytest.mark.usefixtures("tokenizer")
def test_what_the_format_cannot_say_is_rejected_by_name(tmp_path: Path) -> None:
    """Codes of another tokenizer, numbers that are no JSON, a key that the format needs; NaN, as pandas writes it, is null."""
    coded = '"segments": [{"type": "image", "codes": [[0, 1, 2], [3, 4, 5], [6, 7, 8]]}]'
    lines = [
        f'{{"id": "good", {coded}, "meta": {{"score": NaN}}}}',
        f'{{"id": "other", {coded.replace("8]", "64]")}}}',
        f'{{"id": "huge", {coded}, "meta": {{"score": 1e999}}}}',
        f'{{"id": "named", {coded}, "meta": {{"cm3": 1}}}}',
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    report = encode_documents(_config(tmp_path, tmp_path / "data.jsonl", format="webdataset", budget=1))
    assert (report.seen, report.ok, report.rejected) == (4, 1, {"wrong_codes": 1, "bad_record": 2})
    assert [problem.file for problem in report.problems] == ["other", "huge", "named"]
    assert [(key, meta) for key, _, meta in _content(tmp_path / "codes")] == [("good", {"score": None})]
