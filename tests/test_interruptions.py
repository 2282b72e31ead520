"""Full disks, read-only places, signals and second processes: nothing half-written, nothing lost, the same command goes on."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cm3.core import artefact
from cm3.core.temporaries import Owner
from cm3.train.runlock import run_lock

RUN = """
data = "data"
out = "tokenizer"
preset = "quickstart"
image_size = 24
batch_size = 8
tokenizer = {network_options = {width = 16}}
[train]
steps = 4
checkpoint_every = 0
tensorboard = false
"""


def litter(folder: Path) -> list[str]:
    """Temporary and set-aside files and folders that are left below `folder`."""
    return [str(entry) for pattern in (".tmp-*", ".old-*") for entry in folder.rglob(pattern)]


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with open(disk / "filler", "wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            return


@pytest.fixture
def run_file(pictures, tmp_path):
    pictures("data")
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path / "run.toml"


def test_pictures_on_a_full_disk(command, toy_model, picture, small_disk):
    command.works("generate", toy_model, "a red circle", "-n", "1", "--out", small_disk / "out")
    before = (small_disk / "out" / "0-0.png").read_bytes()
    fill(small_disk)
    words = ["no space left", "0 bytes free", "free some"]
    command.fails(5, words, "generate", toy_model, "a blue square", "-n", "1", "--out", small_disk / "out")
    command.fails(5, words, "edit", toy_model, picture, "make it red", "--out", small_disk / "out")
    command.fails(5, words, "retrieval", "search", toy_model, "--text", "x", "--grid", small_disk / "grid.png")
    assert [entry.name for entry in (small_disk / "out").iterdir()] == ["0-0.png"]
    assert (small_disk / "out" / "0-0.png").read_bytes() == before
    assert sorted(entry.name for entry in small_disk.iterdir()) == ["filler", "out"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # NumPy's open files
@pytest.mark.parametrize("free", [0, 40_000, 120_000])
def test_artefacts_on_a_full_disk(command, toy_model, pictures, run_file, small_disk, free):
    """Wherever the writing stops, the older artefact stands and no litter is left."""
    pictures("more", 40)
    for data in ("data", "more"):
        build = ("retrieval", "build", data, small_disk / "memory", "--encoder", "hashing")
        tokenize = ("tokenize", data, small_disk / "tokens", "--image-tokenizer", toy_model / "image_tokenizer")
        if data == "data":
            command.works(*build)
            command.works(*tokenize)
            before = artefact.fingerprint(small_disk / "memory"), artefact.fingerprint(small_disk / "tokens")
            fill(small_disk)
            os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - free)
    command.fails(5, ["no space left"], *build)
    command.fails(5, ["no space", "free"], "vqgan", "train", run_file, f"out={small_disk / 'images'}")
    if free == 0:
        command.fails(5, ["no space left"], *tokenize)
    now = artefact.verify(small_disk / "memory").fingerprint, artefact.verify(small_disk / "tokens").fingerprint
    assert free > 0 or now == before
    assert now[0] == before[0]
    assert not (small_disk / "images").exists()
    assert litter(small_disk) == []


def test_quickstart_on_a_full_disk(command, small_disk):
    command.works("list", "tasks")
    fill(small_disk)
    os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - 65_536)
    command.fails(5, ["no space left"], "quickstart", "--minutes", "0.01", "--out", small_disk / "run")
    assert not (small_disk / "run" / "data").exists()
    assert litter(small_disk) == []


def test_a_read_only_place(command, toy_model, pictures, small_disk):
    pictures("data")
    command.works("retrieval", "build", "data", small_disk / "memory", "--encoder", "hashing")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    command.fails(5, ["read-only"], "generate", toy_model, "a red circle", "--out", small_disk / "out")
    command.fails(5, ["cannot be written"], "quickstart", "--out", small_disk / "run")
    command.fails(5, ["read-only"], "retrieval", "build", "data", small_disk / "memory", "--encoder", "hashing")
    command.works("verify", small_disk / "memory")
    command.works("retrieval", "search", small_disk / "memory", "--text", "picture")


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "stopped")])
def test_training_stops_and_goes_on(command, run_file, tmp_path, monkeypatch, number, code, word):
    def crash_point(name: str, step: int) -> None:
        if (name, step) == ("updated", 1):
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patched:
        patched.setattr("cm3.train.stepping.crash_point", crash_point)
        command.fails(code, [word, "the same command"], "vqgan", "train", run_file)
    assert not (tmp_path / "tokenizer").exists()
    assert [path.name for path in (tmp_path / "tokenizer-run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert litter(tmp_path) == []
    seen = []
    with monkeypatch.context() as patched:
        for module in ("loop", "stepping"):
            patched.setattr(f"cm3.train.{module}.crash_point", lambda name, step: seen.append((name, step)))
        command.works("vqgan", "train", run_file)
    assert ("resumed", 2) in seen
    assert [step for name, step in seen if name == "updated"] == [2, 3]
    artefact.verify(tmp_path / "tokenizer", kind="image_tokenizer")


def test_interruption_while_an_artefact_is_written(command, pictures, tmp_path, monkeypatch):
    pictures("data")
    pictures("more", 40)
    command.works("retrieval", "build", "data", "memory", "--encoder", "hashing")
    before = artefact.fingerprint(tmp_path / "memory")
    with monkeypatch.context() as patched:
        patched.setattr(
            "cm3.core.artefact.hash_file", lambda *_: os.kill(os.getpid(), signal.SIGINT)
        )  # files are written by then
        command.fails(130, ["interrupted"], "retrieval", "build", "more", "memory", "--encoder", "hashing")
    assert artefact.verify(tmp_path / "memory").fingerprint == before
    assert litter(tmp_path) == []


def test_what_a_killed_process_left_is_gone_after_the_next(command, pictures, tmp_path):
    pictures("data")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f".tmp-memory-{replace(Owner.here(), pid=dead.pid)}"
    left.mkdir()
    (left / "vectors.npy").write_bytes(b"half")
    command.works("retrieval", "build", "data", "memory", "--encoder", "hashing")
    assert litter(tmp_path) == []


def test_a_second_process_is_refused(command, run_file, tmp_path):
    with run_lock(tmp_path / "tokenizer-run"):
        command.fails(7, ["tokenizer-run", f"process {os.getpid()}", "wait"], "vqgan", "train", run_file)
    with run_lock(tmp_path / "q"):
        command.fails(7, ["q is in use", f"process {os.getpid()}"], "quickstart", "--out", tmp_path / "q")
    assert sorted(entry.name for entry in (tmp_path / "q").iterdir()) == ["run.lock"]


STOPPED = """
import os, signal, sys
from cm3 import cli
from cm3.core import artefact
from cm3.core.temporaries import Owner
def work(path):
    with artefact.writing("made", "sample") as folder:
        (folder / "a").write_text("half")
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
artefact.verify = work
cli.main(["verify", "x"])
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_process_that_is_asked_to_stop(tmp_path, name, code):
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, name], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert "the same command goes on from there" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_not_enough_memory_is_a_sentence(command, toy_model, monkeypatch):
    import torch

    def draw(*_: object, **__: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr("cm3.pipeline.CM3Pipeline.draw", draw)
    command.fails(1, ["memory", "ask for less"], "generate", toy_model, "a red circle")


def test_a_step_that_went_wrong_is_computed_again(command, toy_model, pictures, tmp_path, monkeypatch):
    pictures("data")
    command.works("tokenize", "data", "tokens", "--image-tokenizer", toy_model / "image_tokenizer", "--workers", "1")
    settings = ["loader.row_length=64", "loader.batch_size=2", "train.steps=5", "train.device=cpu", "train.tensorboard=false"]
    (tmp_path / "run.toml").write_text('tokens = "tokens"\ntokenizer = "tokens-tokenizer"\nout = "out"\n')
    with monkeypatch.context() as patched:
        patched.setattr("cm3.train.update.Measured.finite", False)
        command.fails(6, ["step 0", "nothing was updated", "nonfinite-step-00000000.json"], "train", "run.toml", *settings)
    file = tmp_path / "out-run" / "nonfinite-step-00000000.json"
    shown = json.loads(command.works("train", "run.toml", *settings, "--replay", file, "--json"))
    assert (shown["step"], shown["reproduced"], shown["checkpoint"]) == (0, True, None)
    assert {name for batch in shown["documents"] for row in batch for name in row} <= {f"{number:02d}" for number in range(20)}
    assert "the same again" in command.works("train", "run.toml", *settings, "--replay", file)
    command.fails(2, ["train.seed=0", "this one has 1"], "train", "run.toml", *settings, "train.seed=1", "--replay", file)
    command.fails(4, ["does not describe a step"], "train", "run.toml", *settings, "--replay", "tokens/manifest.json")
    assert not (tmp_path / "out").exists()


def test_the_resolved_settings_lie_beside_the_result(command, run_file, tmp_path):
    command.works("vqgan", "train", run_file, "train.steps=1")
    assert json.loads((tmp_path / "tokenizer-run" / "run.json").read_text())["train"]["steps"] == 1


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 75, "same command"), (signal.SIGINT, 130, "interrupted")])
def test_training_under_a_launcher_ends_with_one_sentence(
    command, toy_model, pictures, tmp_path, monkeypatch, in_child, number, code, word
):
    """What `accelerate launch -m cm3.pretrain` runs in every process, here in a forked one."""
    pictures("data")
    command.works("tokenize", "data", "tokens", "--image-tokenizer", toy_model / "image_tokenizer", "--workers", "1")
    settings = ["loader.row_length=64", "loader.batch_size=2", "train.steps=5", "train.device=cpu", "train.tensorboard=false"]
    (tmp_path / "run.toml").write_text('tokens = "tokens"\ntokenizer = "tokens-tokenizer"\nout = "out"\n')

    def crash_point(name: str, step: int) -> None:
        if (name, step) == ("updated", 1):
            os.kill(os.getpid(), number)

    def launched() -> None:
        monkeypatch.setattr("cm3.train.stepping.crash_point", crash_point)
        monkeypatch.setattr(sys, "argv", ["cm3.pretrain", "run.toml", *settings])
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT), descriptor)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        try:
            runpy.run_module("cm3.pretrain", run_name="__main__")
        except SystemExit as stop:
            sys.stderr.flush()
            os._exit(int(stop.code or 0))

    assert in_child(launched) == code
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if line.startswith("cm3: error: ") and word in line], said
    assert (tmp_path / "stdout").read_text() == ""
    assert [path.name for path in (tmp_path / "out-run" / "checkpoints").iterdir()] == ["step-00000002"]
    command.works("train", "run.toml", *settings)
    artefact.verify(tmp_path / "out", kind="language_model")
