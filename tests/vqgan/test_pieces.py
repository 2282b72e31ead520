"""Encoding and decoding in pieces: the same bytes however it was run, killed too; nothing made twice, nothing half-written."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vqgan.pieces as pieces
from cm3.core.artefact import verify
from cm3.core.errors import ArtefactError, CM3Error, RunLockedError, StorageError, UsageError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.report import ReadReport
from cm3.documents.writers import write_documents
from cm3.train.runlock import run_lock
from vqgan.decoding import DecodeConfig, decode_documents
from vqgan.encoding import EncodeConfig, encode_documents

Run = Callable[..., ReadReport]
FORMATS = ["jsonl", "webdataset"]


@pytest.fixture(params=["encode", "decode"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """The function `run(OUT, **settings)` that encodes 40 pictures, or decodes 40 documents, in six pieces."""
    request.getfixturevalue("tokenizer")
    if request.param == "encode":
        request.getfixturevalue("picture_folder").rename(tmp_path / "data")
    else:
        grids = np.random.default_rng(0).integers(0, 64, (40, 3, 3))
        parts = [(TextSegment(f"number {number}"), ImageSegment(codes=grid)) for number, grid in enumerate(grids)]
        write_documents([Document(f"d{number}", part) for number, part in enumerate(parts)], tmp_path / "data", "jsonl")

    def work(out: Path, **changes: object) -> ReadReport:
        settings = {"tokenizer": str(tmp_path / "tokenizer"), "data": str(tmp_path / "data"), "out": str(out)} | changes
        settings = {"batch_size": 4, "piece_size": 7} | settings
        if request.param == "encode":
            return encode_documents(EncodeConfig.model_validate(settings))
        return decode_documents(DecodeConfig.model_validate(settings))

    return work


def _bytes_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pieces that are made, in order."""
    names: list[str] = []
    make_piece = pieces._make_piece

    def noting(piece: Path, *arguments: object) -> object:
        names.append(piece.name)
        return make_piece(piece, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pieces, "_make_piece", noting)
    return names


@pytest.mark.parametrize("format", FORMATS)
def test_workers_do_not_change_a_byte(run: Run, format: str, tmp_path: Path) -> None:
    for workers in (1, 2):
        assert run(tmp_path / f"{workers}", workers=workers, format=format).ok == 40
    assert _bytes_below(tmp_path / "1") == _bytes_below(tmp_path / "2")
    verify(tmp_path / "1", kind="documents")


def test_the_size_of_pieces_does_not_change_what_is_in_them(run: Run, tmp_path: Path) -> None:
    """With batches that are cut alike; pictures are called after their documents."""
    results = []
    for size in (1000, 8):
        run(tmp_path / f"{size}", piece_size=size)
        results.append(_bytes_below(tmp_path / f"{size}"))
        del results[-1]["manifest.json"]  # names the job
    assert results[0] == results[1]


def test_calling_again_changes_nothing(run: Run, made: list[str], tmp_path: Path) -> None:
    report = run(tmp_path / "out")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run(tmp_path / "out", workers=2, budget=0.5) == report
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == stamps
    assert len(made) == 6


def _interrupted_before_publishing(run: Run, out: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pieces, "_publish", stop)
        with pytest.raises(KeyboardInterrupt):
            run(out, format=format)


@pytest.fixture
def killed_at(in_child: Callable[..., int]) -> Callable[[Callable[[], object], int], bool]:
    """Does work in a child that gets SIGKILL before the nth time that something is to reach the disk; whether it came to that."""

    def work_until(work: Callable[[], object], nth: int) -> bool:
        fsync, count = os.fsync, itertools.count()

        def child() -> None:
            os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL) if next(count) == nth else fsync(descriptor)
            work()

        code = in_child(child)
        assert code in (0, -signal.SIGKILL)
        return code != 0

    return work_until


@pytest.mark.parametrize("format", FORMATS)
def test_killed_again_and_again_it_comes_to_the_same_bytes(
    run: Run, format: str, tmp_path: Path, killed_at: Callable[..., bool], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First while pieces are made, a bit further every time; then, when all stand, at every fourth step of publishing."""
    syncs: list[int] = []
    with monkeypatch.context() as patched:
        fsync = os.fsync
        patched.setattr(os, "fsync", lambda descriptor: (syncs.append(descriptor), fsync(descriptor)))
        run(tmp_path / "whole", format=format)
    whole, out, unfinished = _bytes_below(tmp_path / "whole"), tmp_path / "out", tmp_path / "out.partial"
    standing = []
    for nth in (0, 4, 12, 17, len(syncs) // 3):
        assert killed_at(lambda: run(out, format=format, workers=2), nth)
        assert not out.exists()
        standing.append(len(list(unfinished.glob("piece-*"))))
    assert standing == sorted(standing)
    assert standing[1] == 0 < standing[-1] < 6
    del made[:]
    _interrupted_before_publishing(run, out, format, monkeypatch)
    assert len(made) == 6 - standing[-1]
    for nth in itertools.count(step=4):
        if not killed_at(lambda: run(out, format=format), nth) or out.exists():
            break
    assert nth >= 8
    assert _bytes_below(out) == whole  # also when it was killed between the rename and the end
    assert run(out, format=format).ok == 40
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data", "out", "tokenizer", "whole"]


def test_killed_after_the_result_was_published(run: Run, made: list[str], tmp_path: Path, in_child: Callable[..., int]) -> None:
    rmtree = shutil.rmtree

    def killed_while_tidying() -> None:
        def remove(path: Path, ignore_errors: bool = False) -> None:
            if Path(path).name == "out.partial":
                os.kill(os.getpid(), signal.SIGKILL)
            rmtree(path, ignore_errors)

        shutil.rmtree = remove  # type: ignore[assignment]
        run(tmp_path / "out")

    assert in_child(killed_while_tidying) == -signal.SIGKILL
    before = _bytes_below(tmp_path / "out")
    assert run(tmp_path / "out").ok == 40
    assert made == []
    assert _bytes_below(tmp_path / "out") == before
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_an_interrupted_run_goes_on(
    run: Run, format: str, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", format=format)
    del made[:]
    counting = pieces._make_piece

    def interrupting(piece: Path, *arguments: object) -> object:
        if len(made) == 3:
            raise KeyboardInterrupt
        return counting(piece, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(pieces, "_make_piece", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()
    run(tmp_path / "out", format=format)
    assert made == [f"piece-{number:06}" for number in range(6)]
    assert _bytes_below(tmp_path / "whole") == _bytes_below(tmp_path / "out")


@pytest.fixture
def unpublished(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`out.partial` with all six pieces, of a run that ended before publishing."""
    _interrupted_before_publishing(run, tmp_path / "out", "webdataset", monkeypatch)
    return tmp_path / "out.partial"


@pytest.mark.parametrize("damage", ["a flipped bit", "cut off", "a file gone", "no manifest"])
def test_a_damaged_piece_is_made_again(
    run: Run, damage: str, unpublished: Path, made: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tar = unpublished / "piece-000002" / "000000.tar"
    content = bytearray(tar.read_bytes())
    if damage == "a flipped bit":
        content[700] ^= 4
        tar.write_bytes(content)
    elif damage == "cut off":
        tar.write_bytes(content[:-100])
    else:
        (tar if damage == "a file gone" else tar.with_name("manifest.json")).unlink()
    run(tmp_path / "out", format="webdataset")
    assert made == ["piece-000002"]
    assert "made again" in caplog.text
    run(tmp_path / "whole", format="webdataset")
    assert _bytes_below(tmp_path / "out") == _bytes_below(tmp_path / "whole")


def test_what_is_already_there_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "out")
    for changes in ({"piece_size": 8}, {"format": "webdataset"}, {"batch_size": 5}):
        with pytest.raises(UsageError, match="not the result of this job"):
            run(tmp_path / "out", **changes)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not the result of this job"):
        run(tmp_path / "thesis")
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "job.json").write_text("{}")
    with pytest.raises(UsageError, match="unfinished work of another job"):
        run(tmp_path / "other")
    with pytest.raises(UsageError, match="unknown writer 'json'"):
        run(tmp_path / "new", format="json")
    with run_lock(tmp_path / "busy.partial"), pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
        run(tmp_path / "busy")
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty").ok == 40


def test_a_result_that_lost_a_file_is_no_success(run: Run, tmp_path: Path) -> None:
    run(tmp_path / "out")
    (tmp_path / "out" / "documents.jsonl").unlink()
    with pytest.raises(ArtefactError, match=r"documents\.jsonl is missing"):
        run(tmp_path / "out")


@pytest.mark.usefixtures("unpublished")
@pytest.mark.parametrize("change", ["another record", "fewer records"])
def test_a_source_that_changed_in_between_is_noticed(change: str, run: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    if (data / "documents.jsonl").exists():
        lines = (data / "documents.jsonl").read_text().splitlines()
        other = re.sub(r'("codes": \[\[)\d+', r"\g<1>63", lines[0])
        kept = [other, *lines[1:]] if change == "another record" else lines[:35]
        (data / "documents.jsonl").write_text("\n".join(kept))
    elif change == "another record":
        Image.new("RGB", (24, 24)).save(data / "000.png")
    else:
        for number in range(35, 40):  # pieces are of seven
            (data / f"{number:03}.png").unlink()
    with pytest.raises(UsageError, match="has changed since"):
        run(tmp_path / "out", format="webdataset")


def test_a_converter_that_loses_a_document_is_an_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = pieces._complete
    monkeypatch.setattr(pieces, "_complete", lambda made, *rest: complete(itertools.islice(made, 3), *rest))
    with pytest.raises(CM3Error, match="7 came in, 3 were accounted for"):
        run(tmp_path / "out")
    assert not list((tmp_path / "out.partial").glob("piece-*"))


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_costs_nothing_that_stands(run: Run, format: str, small_disk: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", format=format)
    free = shutil.disk_usage(small_disk).free
    for left in (0, 8_192, 20_480, 40_960):
        (small_disk / "filler").write_bytes(bytes(free - left))
        with pytest.raises(StorageError, match="no space left"):
            run(small_disk / "out", format=format)
        (small_disk / "filler").unlink()
        assert not (small_disk / "out").exists()
        assert not list(small_disk.rglob(".tmp-*"))
        free = shutil.disk_usage(small_disk).free
    run(small_disk / "out", format=format)
    assert _bytes_below(small_disk / "out") == _bytes_below(tmp_path / "whole")


def test_a_read_only_place(run: Run, small_disk: Path) -> None:
    run(small_disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run(small_disk / "out").ok == 40
    with pytest.raises(StorageError, match="cannot be written"):
        run(small_disk / "other")
