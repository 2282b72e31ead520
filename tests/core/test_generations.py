"""Publishing by generations: the old one or the new one, never neither; what a reader holds stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3.core import artefact
from cm3.core.errors import ArtefactError, RunLockedError, StorageError
from cm3.core.generations import CURRENT, current, hold


def publish(path: Path, text: str, base: Path | None = None) -> None:
    with artefact.publishing(path, "sample", {"text": text}, base) as folder:
        (folder / "a.txt").write_text(text)


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_publishing_replaces_and_removes_the_older_one(tmp_path: Path) -> None:
    for number, text in enumerate(("old", "new"), start=1):
        publish(tmp_path / "x", text)
        assert names(tmp_path / "x") == [CURRENT, f"generation-{number:06d}"]
        assert (current(tmp_path / "x") / "a.txt").read_text() == text
        assert artefact.verify(tmp_path / "x", "sample").provenance["text"] == text
    assert names(tmp_path) == ["x"]


def test_a_held_generation_stays_until_it_is_released(tmp_path: Path) -> None:
    publish(tmp_path / "x", "first")
    held = hold(tmp_path / "x")
    publish(tmp_path / "x", "second")
    publish(tmp_path / "x", "third")
    assert names(tmp_path / "x") == [CURRENT, "generation-000001", "generation-000003"]
    assert (held.folder / "a.txt").read_text() == "first"
    held.release()
    publish(tmp_path / "x", "fourth")
    assert names(tmp_path / "x") == [CURRENT, "generation-000004"]


def test_a_generation_that_nobody_refers_to_is_released(tmp_path: Path) -> None:
    publish(tmp_path / "x", "first")
    hold(tmp_path / "x")
    publish(tmp_path / "x", "second")
    assert names(tmp_path / "x") == [CURRENT, "generation-000002"]


def test_a_change_of_what_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    publish(tmp_path / "x", "first")
    base = current(tmp_path / "x")
    publish(tmp_path / "x", "second")
    with pytest.raises(RunLockedError, match="changed by another process"):
        publish(tmp_path / "x", "third", base)
    assert artefact.verify(tmp_path / "x").provenance["text"] == "second"
    assert names(tmp_path / "x") == [CURRENT, "generation-000002"]


def test_the_same_base_by_another_way_of_writing_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "x", "first")
    (tmp_path / "link").symlink_to("x")
    monkeypatch.chdir(tmp_path)
    for path in (Path("x"), Path("link"), tmp_path / "x" / ".." / "x"):
        publish(path, "next", current(path))


def test_a_failure_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path / "x", "first")

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cm3.core.generations.write_text", full)
    with pytest.raises(StorageError, match="no space left"):
        publish(tmp_path / "x", "second")
    assert names(tmp_path / "x") == [CURRENT, "generation-000001"]
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("content", ["", "generation-000001", "generation-000009\n", "../x\n", "\udcff", "generation-1\n"])
def test_a_damaged_pointer_is_refused(content: str, tmp_path: Path) -> None:
    publish(tmp_path / "x", "first")
    (tmp_path / "x" / CURRENT).write_bytes(content.encode("utf-8", "surrogateescape"))
    for read in (current, hold, artefact.verify, artefact.fingerprint):
        with pytest.raises(ArtefactError, match=CURRENT):
            read(tmp_path / "x")
    publish(tmp_path / "x", "repaired")
    assert artefact.verify(tmp_path / "x").provenance["text"] == "repaired"


def test_a_first_publishing_that_died_is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "x" / "generation-000001").mkdir(parents=True)
    publish(tmp_path / "x", "first")
    assert names(tmp_path / "x") == [CURRENT, "generation-000002"]


def test_an_artefact_without_generations_stays_one(tmp_path: Path) -> None:
    with artefact.writing(tmp_path / "x", "sample") as folder:
        (folder / "a.txt").write_text("plain")
    publish(tmp_path / "x", "second")
    assert current(tmp_path / "x") == tmp_path / "x"
    assert (tmp_path / "x" / "a.txt").read_text() == "second"


def test_other_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="not an artefact folder"):
        publish(tmp_path / "x", "second")
    publish(tmp_path / "y", "sample")
    with pytest.raises(StorageError, match="'sample'"), artefact.publishing(tmp_path / "y", "other"):
        pass
