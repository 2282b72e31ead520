"""What a source is, and one clear sentence when it is nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cm3.core.errors import InputError, UsageError
from cm3.documents import READERS, detect_format, read_documents

Png = Callable[[int], bytes]
Tar = Callable[..., Path]


def test_every_format_is_recognized(tmp_path: Path, tar: Tar, png: Png) -> None:
    pairs = {"a.png": png(0), "a.txt": b"x"}
    assert detect_format(tar(pairs)) == "webdataset"
    assert detect_format(tar(pairs | {"index.csv": b"file,text\na.png,x\n"}, "table.tar")) == "table"
    assert detect_format(tar(pairs | {"numbers.csv": b"x,y\n1,2\n"}, "numbers.tar")) == "webdataset"
    assert detect_format(tmp_path) == "webdataset"
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "lines.jsonl").write_text("{}")
    assert detect_format(folder) == "jsonl"
    (folder / "deep" / "a.jpg").write_bytes(png(0))
    assert detect_format(folder) == "folder"
    (folder / "names.tsv").write_text("file\tname\na.jpg\tx\n")
    assert detect_format(folder) == "table"
    (folder / "documents.jsonl").write_text("{}")
    assert detect_format(folder) == "jsonl"
    assert detect_format(folder / "names.tsv") == "table"
    assert detect_format(folder / "lines.jsonl") == "jsonl"


def test_what_it_is_not(tmp_path: Path, png: Png) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("x")
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for name, message in (
        ("none", "there is nothing at"),
        ("empty", "is empty"),
        ("notes", r"holds no pictures \(found a\.md\)"),
        ("a.png", "a single picture; give the folder"),
        ("a.parquet", r"of no known type \(\.parquet\)"),
        ("*.tar", "no file fits"),
        ("{9..1}.tar", "no range"),
        ("a\0b", "cannot be a path"),
        ("x" * 5000, "cannot be a path"),
    ):
        with pytest.raises(InputError, match=message):
            read_documents(f"{tmp_path}/{name}")
    with pytest.raises(InputError, match="there is nothing at"):
        read_documents(tmp_path / "none", "jsonl")
    with pytest.raises(UsageError, match="did you mean 'webdataset'"):
        read_documents(tmp_path, "webdatset")


def test_readers_are_importable() -> None:
    assert all(callable(READERS.get(name)) for name in READERS.names())


def test_a_name_that_looks_like_a_pattern_but_exists(tmp_path: Path, png: Png) -> None:
    odd = tmp_path / "pictures [2024] {a,b}"
    odd.mkdir()
    (odd / "a.png").write_bytes(png(0))
    assert [document.id for document in read_documents(odd)] == ["a"]


@pytest.mark.parametrize(("name", "format"), [("a.tar", "webdataset"), ("a.tar", "table"), ("a.jsonl", "jsonl")])
def test_a_source_that_cannot_be_opened(name: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"x")

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # file modes do not stop root
    with pytest.raises(InputError, match=rf"{name} cannot be read: Permission denied"):
        list(read_documents(tmp_path / name, format))
