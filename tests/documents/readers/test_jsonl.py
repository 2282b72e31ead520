"""JSONL in its full form and the shorthand, and lines that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cm3.core.errors import InputError
from cm3.documents import Document, ReadOptions, ReadReport, read_documents

Png = Callable[[int], bytes]


def read(path: Path, *lines: object, **options: object) -> tuple[list[Document], ReadReport]:
    if lines:
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    report = ReadReport()
    return list(read_documents(path, None, report, ReadOptions(**options))), report  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path, png: Png) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
    return tmp_path / "data.jsonl"


def test_full_form_keeps_any_interleaving(file: Path) -> None:
    segments = [
        {"type": "text", "text": " before "},
        {"type": "image", "path": "images/1.png"},
        {"type": "text", "text": "after"},
        {"type": "image", "codes": [[1, 2], [3, 4]]},
    ]
    (document,), _ = read(file, {"id": "d/1", "segments": segments, "meta": {"license": "CC0"}})
    assert (document.id, document.text, dict(document.meta)) == ("d/1", " before \nafter", {"license": "CC0"})
    assert document.images[0].path == file.parent / "images/1.png"
    assert document.images[1].codes is not None
    assert document.images[1].codes.tolist() == [[1, 2], [3, 4]]


def test_shorthand(file: Path) -> None:
    documents, report = read(
        file,
        {"image": "images/0.png", "text": "zero", "year": 1999},
        {"file_name": "images/1.png", "caption": "one", "id": 17},
        {"images": ["images/0.png", "images/2.png"]},
        {"text": "words alone", "image": None},
    )
    assert [document.id for document in documents] == ["data-00000001", "17", "data-00000003", "data-00000004"]
    assert [len(document.images) for document in documents] == [1, 1, 2, 0]
    assert dict(documents[0].meta) == {"year": 1999}
    assert report.ok == 4


def test_absolute_and_upward_paths_are_taken_as_written(file: Path, png: Png) -> None:
    below = file.parent / "lists"
    below.mkdir()
    documents, _ = read(
        below / "a.jsonl", {"image": str(file.parent / "images/0.png"), "text": "x"}, {"image": "../images/1.png", "text": "y"}
    )
    assert len(documents) == 2


def test_every_bad_line_is_counted_under_its_reason(file: Path) -> None:
    good = {"id": "same", "image": "images/0.png", "text": "x"}
    lines: list[object] = [
        good,
        b"{",
        b"[1]",
        b"",
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        {"image": "images/none.png", "text": "x"},
        {"image": "images/\ud800.png", "text": "x"},
        {"image": "images", "text": "x"},
        {"image": ["images/0.png", 3], "text": "x"},
        {"image": "images/0.png", "text": "  "},
        {"image": "images/0.png", "text": 5},
        {"id": "a/../b", "text": "x"},
        {"id": {}, "text": "x"},
        {"text": "x", "meta": []},
        {"segments": "x"},
        {"segments": ["x"]},
        {"segments": [{"type": "sound"}]},
        {"segments": [{"type": "image"}]},
        {"segments": [{"type": "image", "codes": [[1, 2], [3]]}]},
        {"segments": [{"type": "image", "codes": [[1, -2]]}]},
        {"segments": []},
        {"other": 1},
        good,
    ]
    documents, report = read(file, *lines)
    assert [document.id for document in documents] == ["same"]
    assert report.rejected == {
        "bad_json": 1,
        "bad_record": 11,
        "text_not_utf8": 2,
        "missing_image": 2,
        "unreadable_image": 1,
        "empty_text": 1,
        "unsafe_key": 1,
        "no_content": 2,
        "duplicate_key": 1,
    }
    assert report.seen == 23  # the blank line is none
    assert report.problems[0].where == "line 2"
    assert f"{file} line 1 and again in {file} line 24" in report.problems[-1].message


def test_a_line_too_long_costs_itself_only(file: Path) -> None:
    documents, report = read(file, {"text": "a"}, b'{"text": "' + b"x" * 5000 + b'"}', {"text": "b"}, max_record_bytes=1000)
    assert [document.text for document in documents] == ["a", "b"]
    assert report.rejected == {"record_too_long": 1}
    assert report.problems[0].where == "line 2"


def test_byte_order_mark_and_windows_line_ends(file: Path) -> None:
    file.write_bytes('\ufeff{"text": "a"}\r\n\r\n{"text": "b"}\r\n'.encode())
    assert [document.text for document in read(file)[0]] == ["a", "b"]


def test_a_folder_stands_for_its_file(file: Path) -> None:
    read(file, {"text": "a"})
    folder = file.parent
    assert [document.text for document in read_documents(folder, "jsonl")] == ["a"]
    (folder / "more.jsonl").write_text('{"text": "b"}')
    with pytest.raises(InputError, match="2 .jsonl files"):
        list(read_documents(folder, "jsonl"))
    (folder / "documents.jsonl").write_text('{"text": "c"}')
    assert [document.text for document in read_documents(folder)] == ["c"]
    with pytest.raises(InputError, match="no .jsonl file"):
        list(read_documents(folder / "images", "jsonl"))


def test_an_empty_file_is_an_error(file: Path) -> None:
    file.touch()
    with pytest.raises(InputError, match="holds no records"):
        list(read_documents(file))


def test_a_text_of_blanks_is_no_content(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    documents, report = read(
        file, {"id": "blank", "segments": [{"type": "text", "text": " \n "}]}, {"id": "good", "text": "words"}
    )
    assert [document.id for document in documents] == ["good"]
    assert sum(report.rejected.values()) == 1
