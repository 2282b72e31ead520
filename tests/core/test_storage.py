"""Files: the older one stands until the new one is whole; what the operating system answers is told in one sentence."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from cm3.core import storage
from cm3.core.errors import ArtefactError, StorageError


def test_bytes_text_and_json_round_trip(tmp_path: Path) -> None:
    storage.write_bytes(tmp_path / "a", b"\x00\xff")
    storage.write_text(tmp_path / "b", "ä")
    storage.write_json(tmp_path / "c", {"x": [1.5, None, "ä"]})
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_text("utf-8") == "ä"
    assert storage.read_json(tmp_path / "c") == {"x": [1.5, None, "ä"]}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "c"]


def test_the_older_file_stands_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_text(tmp_path / "a", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match="no space left to write"):
        storage.write_text(tmp_path / "a", "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_full_device_is_told_also_by_numpy(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no space left"), storage.full_disk_errors(tmp_path):
        np.zeros(100_000).tofile("/dev/full")


@pytest.mark.parametrize(
    ("name", "words"),
    [("file/x/a", "part of its path is a file"), ("folder", "folder stands"), ("n" * 300, "name too long"), ("no/a", "No such")],
)
def test_places_that_cannot_be_written(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=words) as caught:
        storage.write_text(tmp_path / name, "")
    assert len(str(caught.value)) < 350


def test_require_writable_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.require_writable(tmp_path / "new" / "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(StorageError, match="part of its path is a file"):
            storage.require_writable(place)
    monkeypatch.setattr(storage.os, "access", lambda place, mode: False)  # root may write everywhere but on a read-only disk
    with pytest.raises(StorageError, match="read-only"):
        storage.require_writable(tmp_path / "new")


def test_a_json_file_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content, words in [("a", b"{", "as JSON"), ("b", b"\xff", "as JSON"), ("c", b"[" * 100_000, "as JSON")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtefactError, match=words):
            storage.read_json(tmp_path / name)
    with pytest.raises(ArtefactError, match="is missing"):
        storage.read_json(tmp_path / "none")
    with pytest.raises(ArtefactError, match="Is a directory"):
        storage.read_json(tmp_path)
