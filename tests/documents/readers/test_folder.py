"""A plain folder of pictures with captions beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cm3.core.errors import BudgetError
from cm3.documents import Document, ReadReport, read_documents

Png = Callable[[int], bytes]


def make(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def read(root: Path) -> tuple[list[Document], ReadReport]:
    report = ReadReport()
    return list(read_documents(root, "folder", report)), report


def test_pictures_at_any_depth_in_order_of_their_paths(tmp_path: Path, png: Png) -> None:
    root = make(
        tmp_path,
        {
            "b.png": png(0),
            "b.txt": b"bee",
            "birds/a b.PNG": png(1),
            "birds/a b.caption": "a Käfer".encode(),
            "birds/deep/c.v2.png": png(2),
            "birds/deep/c.v2.json": b'{"caption": "see", "n": 1}',
            "bare.png": png(3),
            ".hidden/x.png": png(4),
            ".hidden.png": png(5),
            "notes.md": b"none of ours",
            "alone.txt": b"no picture",
        },
    )
    documents, report = read(root)
    assert [(document.id, document.text) for document in documents] == [
        ("b", "bee"),
        ("bare", ""),
        ("birds/a b", "a Käfer"),
        ("birds/deep/c.v2", "see"),
    ]
    assert dict(documents[3].meta) == {"n": 1}
    assert documents[0].images[0].path == root / "b.png"
    assert report.seen == 4


def test_text_file_goes_before_json_and_the_json_stays_meta(tmp_path: Path, png: Png) -> None:
    root = make(tmp_path, {"a.png": png(0), "a.txt": b"from txt", "a.json": b'{"caption": "from json"}'})
    (document,), _ = read(root)
    assert (document.text, dict(document.meta)) == ("from txt", {"caption": "from json"})


def test_same_name_with_two_suffixes(tmp_path: Path, png: Png) -> None:
    documents, _ = read(make(tmp_path, {"a.png": png(0), "a.bmp": png(1), "a.txt": b"x"}))
    assert [document.id for document in documents] == ["a.bmp", "a.png"]


def test_bad_files_are_counted(tmp_path: Path, png: Png) -> None:
    root = make(
        tmp_path,
        {"a.png": b"", "b.png": b"text", "c.png": png(0), "c.txt": b"", "d.png": png(1), "d.json": b"[]", "e.png": png(2)},
    )
    (root / "e.txt").mkdir()
    (root / "f.png").symlink_to(root / "nowhere.png")
    documents, report = read(root)
    assert documents == []
    assert report.rejected == {"empty_image": 1, "not_an_image": 1, "empty_text": 1, "bad_record": 2, "missing_image": 1}
    with pytest.raises(BudgetError, match="6 of 6"):
        list(read_documents(root))


def test_a_loop_of_links_ends(tmp_path: Path, png: Png) -> None:
    root = make(tmp_path / "data", {"a.png": png(0)})
    (root / "again").symlink_to(root)
    assert len(read(root)[0]) == 1


def test_a_folder_of_one_picture(tmp_path: Path, png: Png) -> None:
    assert [document.id for document in read_documents(make(tmp_path, {"only.png": png(0)}))] == ["only"]
