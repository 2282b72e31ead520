"""Artefact folders: whole or not at all, every changed byte noticed, litter swept."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cm3.core import artefact, temporaries
from cm3.core.errors import ArtefactError, StorageError
from cm3.core.temporaries import Owner, aside, temporary


def write_sample(path: Path, text: str = "hello") -> Path:
    with artefact.writing(path, kind="sample", provenance={"seed": 1}) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "part").mkdir()
        (folder / "part" / "b.bin").write_bytes(bytes(range(256)))
    return path


def test_round_trip_and_fingerprint(tmp_path: Path) -> None:
    first, second, other = (write_sample(tmp_path / name, text) for name, text in [("x", "hello"), ("y", "hello"), ("z", "bye")])
    manifest = artefact.verify(first, kind="sample")
    assert set(manifest.files) == {"a.txt", "part/b.bin"}
    assert manifest.provenance == {"seed": 1}
    assert artefact.fingerprint(first) == artefact.fingerprint(second) != artefact.fingerprint(other)


def test_replaces_an_older_folder(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "x", "old")
    write_sample(path, "new")
    assert (path / "a.txt").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_what_is_no_artefact_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    write_sample(tmp_path / "mine")  # an empty folder is free to use
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("precious")
    (tmp_path / "notes").write_text("precious")
    for name in ("photos", "notes"):
        with pytest.raises(StorageError, match="not replaced"):
            write_sample(tmp_path / name)
    assert (tmp_path / "photos" / "a.png").read_text() == (tmp_path / "notes").read_text() == "precious"


def test_failure_inside_leaves_the_older_folder_and_no_litter(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "x", "old")
    with pytest.raises(ZeroDivisionError), artefact.writing(path, kind="sample") as folder:
        (folder / "a.txt").write_text("half")
        _ = 1 / 0
    artefact.verify(path, kind="sample")
    assert (path / "a.txt").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("position", range(0, 256, 37))
def test_every_flipped_byte_is_noticed(tmp_path: Path, position: int) -> None:
    path = write_sample(tmp_path / "x")
    content = bytearray((path / "part" / "b.bin").read_bytes())
    content[position] ^= 1
    (path / "part" / "b.bin").write_bytes(bytes(content))
    with pytest.raises(ArtefactError, match=r"part/b\.bin"):
        artefact.verify(path)


def test_missing_extra_short_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "missing")
    (path / "a.txt").unlink()
    with pytest.raises(ArtefactError, match=r"a\.txt is missing"):
        artefact.verify(path)
    path = write_sample(tmp_path / "extra")
    (path / "c").write_text("c")
    with pytest.raises(ArtefactError, match="does not name: c"):
        artefact.verify(path)
    path = write_sample(tmp_path / "short")
    (path / "a.txt").write_text("hell")
    with pytest.raises(ArtefactError, match="4 bytes, expected 5"):
        artefact.verify(path)
    with pytest.raises(ArtefactError, match="kind 'sample', expected 'model'"):
        artefact.verify(write_sample(tmp_path / "kind"), kind="model")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "[" * 100_000, '{"kind": "x"}', '{"kind": "x", "files": {"a": 1}, "versions": {}, "provenance": {}}'],
)
def test_a_broken_manifest_is_an_artefact_error(tmp_path: Path, content: str) -> None:
    path = write_sample(tmp_path / "x")
    (path / artefact.MANIFEST).write_text(content)
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        artefact.verify(path)


def test_no_folder_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such folder"):
        artefact.verify(tmp_path / "nowhere")
    with pytest.raises(ArtefactError, match=r"no manifest\.json"):
        artefact.verify(tmp_path)


def _json_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize("position", range(3, 640, 31))
def test_every_flipped_byte_of_a_manifest_is_noticed_or_harmless(tmp_path: Path, position: int) -> None:
    path = write_sample(tmp_path / "x")
    before = artefact.read_manifest(path)
    original = (path / artefact.MANIFEST).read_bytes()
    content = bytearray(original)
    content[position % len(content)] ^= 1
    (path / artefact.MANIFEST).write_bytes(bytes(content))
    same = False
    with suppress(ArtefactError):
        same = artefact.verify(path) == before  # white space
    assert same == (json.loads(original) == _json_or_none(bytes(content)))


def test_an_artefact_of_another_kind_is_never_replaced(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "model")
    with pytest.raises(StorageError, match="kind 'sample', so it is not replaced"), artefact.writing(path, kind="memory"):
        pass
    artefact.verify(path, kind="sample")
    (path / artefact.MANIFEST).write_text("{")  # what is damaged is there to be made again
    with artefact.writing(path, kind="memory"):
        pass
    artefact.verify(path, kind="memory")


def test_hidden_files_may_be_there(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "x")
    (path / "part" / ".DS_Store").write_text("of a file manager")
    artefact.verify(path)


def test_what_a_dead_process_of_the_same_number_left_is_cleared(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "x", "old")
    temporary(path).mkdir()
    os.rename(path, aside(path))
    with pytest.raises(ZeroDivisionError), artefact.writing(path, kind="sample"):
        _ = 1 / 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert (path / "a.txt").read_text() == "old"


def test_interruption_between_the_two_renames_puts_the_older_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename, calls = write_sample(tmp_path / "x", "old"), os.rename, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_sample(path, "new")
    assert (path / "a.txt").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "x").symlink_to(tmp_path / "disk" / "x")
    for text in ("old", "new"):
        write_sample(tmp_path / "x", text)
        assert (tmp_path / "x").is_symlink()
        assert (tmp_path / "disk" / "x" / "a.txt").read_text() == text


def test_files_are_as_readable_as_their_folder(tmp_path: Path) -> None:
    with artefact.writing(tmp_path / "x", kind="sample") as folder:
        (folder / "weights").touch(mode=0o600)
    assert (tmp_path / "x" / "weights").stat().st_mode & 0o777 == (tmp_path / "x").stat().st_mode & 0o666


def test_unwritable_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot be written"), artefact.writing(tmp_path / "file" / "x", kind="sample"):
        pass
    with pytest.raises(StorageError, match="cannot be written"):
        artefact.write_json(Path("/proc/version/x.json"), {})


def test_full_disk_is_a_storage_error_also_from_a_library(tmp_path: Path) -> None:
    for error in (OSError(28, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")):
        with pytest.raises(StorageError, match="no space left"), artefact.writing(tmp_path / "x", kind="sample"):
            raise error
    assert not list(tmp_path.iterdir())


def test_sweep_clears_what_dead_processes_left(tmp_path: Path) -> None:
    write_sample(tmp_path / "x")
    dead, here = replace(Owner.here(), pid=dead_pid()), Owner.here()
    assert not here.is_dead
    (tmp_path / f".tmp-y-{dead}").mkdir()
    (tmp_path / f".tmp-y-{replace(here, boot='0' * 8)}").mkdir()  # whoever has that number since
    os.rename(tmp_path / "x", tmp_path / f".old-x-{dead}")
    temporary(tmp_path / "z").mkdir()
    artefact.sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [f".tmp-z-{here}", "x"]
    artefact.verify(tmp_path / "x")


@pytest.mark.parametrize("host", ["name", "namespace"])
def test_what_other_machines_or_containers_write_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """On a shared disk: their numbers are no processes here, and yet they are writing."""
    number = dead_pid()
    with monkeypatch.context() as there:
        if host == "name":
            there.setattr(socket, "gethostname", lambda: "another-node")
        else:
            there.setattr(os, "stat", lambda path, **_: SimpleNamespace(st_ino=1))
        temporaries._place.cache_clear()
        there.setattr(os, "getpid", lambda: number)
        theirs = temporary(tmp_path / "part-1")
    temporaries._place.cache_clear()
    theirs.mkdir()
    (theirs / "tokens.npy").write_bytes(b"half")
    os.rename(write_sample(tmp_path / "part-2"), tmp_path / theirs.name.replace(".tmp-part-1", ".old-part-2"))
    write_sample(tmp_path / "part-3")
    assert (theirs / "tokens.npy").exists()
    assert not (tmp_path / "part-2").exists()


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


_WRITER = """
import sys
from pathlib import Path
from cm3.core import artefact
print("ready", flush=True)
for number in range(10**6):
    with artefact.writing(Path(sys.argv[1]), kind="sample") as folder:
        for name in "abc":
            (folder / name).write_text(f"{number}" * 5000)
"""


def test_kill_9_leaves_old_or_new_never_half(tmp_path: Path, times: Callable[[int], range]) -> None:
    path, rng = tmp_path / "x", random.Random(0)
    with artefact.writing(path, kind="sample") as folder:
        for name in "abc":
            (folder / name).write_text("before")
    for _ in times(10):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0.02, 0.08))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        artefact.sweep(tmp_path)
        artefact.verify(path, kind="sample")
        assert len({(path / name).read_text() for name in "abc"}) == 1
        assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
