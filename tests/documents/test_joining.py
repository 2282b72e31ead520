"""Folders of documents written in parts and joined hold, to the byte, what one writing makes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3.core.artefact import writing
from cm3.core.errors import UsageError
from cm3.documents import Document, ImageSegment, TextSegment, read_documents, write_documents
from cm3.documents.joining import JOINERS, join_documents
from cm3.documents.writers import WRITERS

DOCUMENTS = [
    Document(f"d/{number}", (TextSegment(f" text {number}"), ImageSegment(image=Image.new("RGB", (5, 4), (number, 0, 9)))))
    for number in range(5)
] + [Document("codes", (ImageSegment(codes=np.eye(2, dtype=int)),)), Document("words", (TextSegment("only"),), {"n": 1})]


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _joined(tmp_path: Path, format: str, cuts: list[int]) -> dict[str, bytes]:
    parts = []
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(DOCUMENTS)])):
        parts.append(tmp_path / f"part-{number}")
        write_documents(DOCUMENTS[start:stop], parts[-1], format, shard_size=3)
        (parts[-1] / "note.json").write_text("{}")  # not of the format
    before = [_contents(part) for part in parts]
    with writing(tmp_path / "joined", kind="documents", provenance={"format": format}) as folder:
        join_documents(parts, folder, format)
    assert [_contents(part) for part in parts] == before
    assert [document.id for document in read_documents(tmp_path / "joined")] == [document.id for document in DOCUMENTS]
    return _contents(tmp_path / "joined")


@pytest.mark.parametrize("format", ["jsonl", "webdataset"])
@pytest.mark.parametrize("linking", [True, False])
def test_joined_parts_are_one_writing(format: str, linking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    if not linking:
        monkeypatch.setattr(os, "link", refuse)
    write_documents(DOCUMENTS, tmp_path / "whole", format, shard_size=3)
    assert _joined(tmp_path, format, [3, 6]) == _contents(tmp_path / "whole")


@pytest.mark.parametrize("format", ["jsonl", "webdataset"])
def test_an_empty_part_leaves_no_gap(format: str, tmp_path: Path) -> None:
    names = set(_joined(tmp_path, format, [3, 3, 6]))
    if format == "webdataset":
        assert {name for name in names if name.endswith(".tar")} == {"000000.tar", "000001.tar", "000002.tar"}


def test_every_format_that_is_written_can_be_joined(tmp_path: Path) -> None:
    assert set(JOINERS.names()) == set(WRITERS.names())
    with pytest.raises(UsageError, match="unknown joiner 'zip'"):
        join_documents([], tmp_path, "zip")
