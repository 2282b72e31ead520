"""Data sets to codes and back: every input accounted for, the same bytes however it was run, safe under kill."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vqgan.encoding as encoding
from cm3.core.errors import BudgetError, InputError, UsageError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.readers import read_documents
from cm3.documents.writers import write_documents
from vqgan.config import VQConfig
from vqgan.decoding import decode_documents
from vqgan.encoding import EncodeConfig, encode_documents
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer

Draw = Callable[[int], Image.Image]


@pytest.fixture
def tokenizer(tmp_path: Path) -> VQTokenizer:
    torch.manual_seed(0)
    made = VQTokenizer(VQModel(VQConfig(image_size=24, codebook_size=64, codebook_dim=8, network_options={"width": 16})))
    made.save(tmp_path / "tokenizer")
    return made


def _config(tmp_path: Path, data: Path, out: str = "codes", **changes: object) -> EncodeConfig:
    settings = {"tokenizer": str(tmp_path / "tokenizer"), "data": str(data), "out": str(tmp_path / out)}
    return EncodeConfig.model_validate({**settings, "batch_size": 4, "piece_size": 7, **changes})


def test_codes_are_those_of_the_tokenizer(tokenizer: VQTokenizer, picture_folder: Path, tmp_path: Path) -> None:
    report = encode_documents(_config(tmp_path, picture_folder))
    assert (report.seen, report.ok) == (40, 40)
    coded = {document.id: document for document in read_documents(tmp_path / "codes")}
    for document in read_documents(picture_folder):
        [segment] = coded[document.id].images
        expected = tokenizer.encode(tokenizer.preprocess([document.images[0].load()]))[0]
        assert segment.codes is not None
        assert np.array_equal(segment.codes, expected.numpy())
    assert not (tmp_path / "codes.partial").exists()


def test_texts_order_and_several_pictures_stay(tokenizer: VQTokenizer, block_picture: Draw, tmp_path: Path) -> None:
    pictures = [ImageSegment(image=block_picture(number)) for number in range(3)]
    segments = (pictures[0], TextSegment("before"), pictures[1], pictures[2], TextSegment("after"))
    write_documents(iter([Document("a", segments, {"n": 1}), Document("b", (TextSegment("words"),))]), tmp_path / "data", "jsonl")
    encode_documents(_config(tmp_path, tmp_path / "data"))
    first, second = read_documents(tmp_path / "codes")
    assert [type(segment).__name__ for segment in first.segments] == [type(segment).__name__ for segment in segments]
    assert (first.text, first.meta, second.text) == ("before\nafter", {"n": 1}, "words")
    expected = tokenizer.encode(tokenizer.preprocess([block_picture(number) for number in range(3)]))
    assert np.array_equal(np.stack([segment.codes for segment in first.images]), expected.numpy())  # type: ignore[misc]


@pytest.mark.usefixtures("tokenizer")
def test_workers_do_not_change_a_byte(picture_folder: Path, tmp_path: Path) -> None:
    encode_documents(_config(tmp_path, picture_folder, "one"))
    encode_documents(_config(tmp_path, picture_folder, "two", workers=2))
    files = [(tmp_path / out / "documents.jsonl").read_bytes() for out in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.usefixtures("tokenizer")
def test_an_interrupted_run_goes_on(picture_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode_documents(_config(tmp_path, picture_folder, "whole"))
    made: list[int] = []
    encode_piece = encoding._encode_piece

    def counting(*arguments: object) -> object:
        made.append(1)
        if len(made) == 4:
            raise KeyboardInterrupt
        return encode_piece(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(encoding, "_encode_piece", counting)
    with pytest.raises(KeyboardInterrupt):
        encode_documents(_config(tmp_path, picture_folder))
    assert not (tmp_path / "codes").exists()
    made.append(1)
    encode_documents(_config(tmp_path, picture_folder))
    assert len(made) == 5 + 3  # three of six pieces stood already
    files = [(tmp_path / out / "documents.jsonl").read_bytes() for out in ("whole", "codes")]
    assert files[0] == files[1]
    stamp = (tmp_path / "codes" / "documents.jsonl").stat().st_mtime_ns
    assert encode_documents(_config(tmp_path, picture_folder)).ok == 40
    assert (tmp_path / "codes" / "documents.jsonl").stat().st_mtime_ns == stamp


def _encode_until_killed(config: EncodeConfig, nth: int) -> None:
    """Encode in a child process that gets SIGKILL before the `nth` piece is noted as standing."""
    child = os.fork()
    if child:
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        return
    write_json, notes = encoding.write_json, []

    def write(path: Path, value: object) -> None:
        notes.extend([path.name] if path.name.startswith("piece-") else [])
        if len(notes) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        write_json(path, value)

    encoding.write_json = write  # type: ignore[assignment]
    try:
        encode_documents(config)
    finally:
        os._exit(1)  # not killed


@pytest.mark.usefixtures("tokenizer")
def test_a_killed_run_goes_on_to_the_same_bytes(picture_folder: Path, tmp_path: Path) -> None:
    """SIGKILL between the lines of a piece and the note that it stands; then again, further on; then to the end."""
    encode_documents(_config(tmp_path, picture_folder, "whole"))
    config = _config(tmp_path, picture_folder, "killed", workers=2)
    for nth, standing in ((3, 2), (2, 3)):  # the second run finds two pieces, makes the third, dies in the fourth
        _encode_until_killed(config, nth)
        assert not (tmp_path / "killed").exists()
        assert len(list((tmp_path / "killed.partial").glob("piece-*.json"))) == standing
    assert encode_documents(config).ok == 40
    files = [(tmp_path / out / "documents.jsonl").read_bytes() for out in ("whole", "killed")]
    assert files[0] == files[1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["killed", "pictures", "tokenizer", "whole"]


@pytest.mark.usefixtures("tokenizer")
@pytest.mark.parametrize("change", ["another picture", "the last piece gone"])
def test_a_source_that_changed_in_between_is_noticed(
    change: str, picture_folder: Path, tmp_path: Path, block_picture: Draw
) -> None:
    (picture_folder / "030.png").write_bytes(b"no picture")
    (picture_folder / "031.png").write_bytes(b"no picture either")
    with pytest.raises(BudgetError, match=r"all counts are in .*report\.json"):
        encode_documents(_config(tmp_path, picture_folder))
    report = json.loads((tmp_path / "codes.partial" / "report.json").read_text())
    assert (report["seen"], report["rejected"]) == (40, {"not_an_image": 2})
    if change == "another picture":
        block_picture(99).save(picture_folder / "000.png")
    else:
        for number in range(35, 40):  # pieces are of seven
            (picture_folder / f"{number:03}.png").unlink()
    with pytest.raises(UsageError, match="has changed since"):
        encode_documents(_config(tmp_path, picture_folder, budget=0.1))


@pytest.mark.usefixtures("tokenizer")
@pytest.mark.parametrize("kind", ["jsonl", "webdataset"])
def test_every_kind_of_source_gives_the_same_codes(kind: str, picture_folder: Path, tmp_path: Path) -> None:
    write_documents(read_documents(picture_folder), tmp_path / "data", kind)
    for out, data in (("a", picture_folder), ("b", tmp_path / "data")):
        encode_documents(_config(tmp_path, data, out))
    first, second = ({document.id: document.images[0].codes for document in read_documents(tmp_path / out)} for out in ("a", "b"))
    assert len(first) == 40
    assert all(np.array_equal(first[key], second[key]) for key in first)  # type: ignore[arg-type]


@pytest.mark.usefixtures("tokenizer")
def test_every_input_is_accounted_for(picture_folder: Path, tmp_path: Path) -> None:
    whole = (picture_folder / "007.png").read_bytes()
    (picture_folder / "007.png").write_bytes(whole[: len(whole) // 2])
    (picture_folder / "008.png").write_bytes(b"")
    with pytest.raises(BudgetError, match="2 of 40"):
        encode_documents(_config(tmp_path, picture_folder))
    report = encode_documents(_config(tmp_path, picture_folder, budget=0.1))
    assert (report.seen, report.ok, report.num_rejected) == (40, 38, 2)
    assert report.rejected == {"empty_image": 1, "truncated_image": 1}
    assert len((tmp_path / "codes" / "documents.jsonl").read_text().splitlines()) == 38
    assert json.loads((tmp_path / "codes" / "report.json").read_text())["rejected"] == report.rejected
    assert encode_documents(_config(tmp_path, picture_folder, budget=0.1)) == report


@pytest.mark.usefixtures("tokenizer")
def test_other_work_is_not_overwritten(picture_folder: Path, tmp_path: Path) -> None:
    encode_documents(_config(tmp_path, picture_folder))
    with pytest.raises(UsageError, match="not the result of this job"):
        encode_documents(_config(tmp_path, picture_folder, piece_size=8))
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "job.json").write_text("{}")
    with pytest.raises(UsageError, match="unfinished work of another job"):
        encode_documents(_config(tmp_path, picture_folder, "other"))


def test_back_to_pictures(tokenizer: VQTokenizer, picture_folder: Path, tmp_path: Path) -> None:
    encode_documents(_config(tmp_path, picture_folder))
    assert decode_documents(tokenizer, tmp_path / "codes", tmp_path / "decoded") == 40
    originals = {document.id: document.images[0].load() for document in read_documents(picture_folder)}
    for document in read_documents(tmp_path / "decoded"):
        expected = tokenizer.postprocess(tokenizer.decode(tokenizer.encode(tokenizer.preprocess([originals[document.id]]))))[0]
        difference = np.asarray(document.images[0].load(), int) - np.asarray(expected, int)
        assert np.abs(difference).max() <= 1


def test_codes_of_another_tokenizer_are_refused(tokenizer: VQTokenizer, tmp_path: Path) -> None:
    write_documents(iter([Document("a", (ImageSegment(codes=np.full((3, 3), 64)),))]), tmp_path / "data", "jsonl")
    with pytest.raises(InputError, match=r"document a: codes of shape \(3, 3\) from 64 to 64, expected \(3, 3\) in \[0, 64\)"):
        decode_documents(tokenizer, tmp_path / "data", tmp_path / "pictures")
