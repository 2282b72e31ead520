"""The command line as a process: help is quick, a user's mistake is one sentence and the documented exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cm3.core import artefact


def cm3(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cm3.cli", *map(str, arguments)]
    environment = {**os.environ, "CM3_PROGRESS": "off", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def assert_one_sentence(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Exit `code`, nothing on stdout, one line on stderr with all of `words`, no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("cm3: error:")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_help_teaches() -> None:
    done = cm3("--help")
    assert done.returncode == 0
    for command in ("quickstart", "generate", "caption", "ask", "edit", "infill", "tokenize", "train", "eval", "retrieval"):
        assert command in done.stdout
    assert "cm3 quickstart" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        *("quickstart", "generate", "caption", "ask", "edit", "infill", "chat"),
        *("tokenize", "train", "eval", "convert", "list", "info", "verify"),
        *(
            "vqgan train",
            "vqgan eval",
            "vqgan encode",
            "vqgan decode",
            "vqgan convert",
            "retrieval train-encoder",
            "retrieval build",
            "retrieval search",
            "retrieval eval",
            *(f"retrieval {name}" for name in ("add", "remove", "merge", "neighbors", "verify", "import", "export", "shards")),
        ),
        *("retrieval info", "sft train", "sft preview", "sft data check"),
    ],
)
def test_every_command_has_help(command: str) -> None:
    done = cm3(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 4


def test_version() -> None:
    assert cm3("--version").stdout.startswith("cm3 0.")


def test_wrong_usage(tmp_path: Path) -> None:
    assert_one_sentence(cm3("nonsense"), 2, "nonsense", "cm3 --help")
    assert_one_sentence(cm3("generate"), 2, "model", "cm3 generate --help")
    assert_one_sentence(cm3("list", "task"), 2, "unknown kind 'task'", "tasks")
    assert_one_sentence(cm3("train", tmp_path / "none.toml"), 2, "does not exist")


def test_run_files(tmp_path: Path, command) -> None:
    run = tmp_path / "run.toml"
    run.write_text('data = "x"\nout = "y"\npresett = "tiny"\n')
    command.fails(2, ["presett", "did you mean 'preset'"], "vqgan", "train", run)
    run.write_text('data = "x"\nout = "y"\n[train]\nsteps = "many"\n')
    command.fails(2, ["train.steps", "many"], "vqgan", "train", run)
    command.fails(2, ["unknown key"], "sft", "train", run)


def test_list() -> None:
    assert "tasks" in cm3("list").stdout.split()
    assert json.loads(cm3("list", "tasks", "--json").stdout) == [
        "text_to_image",
        "captioning",
        "vqa",
        "editing",
        "infilling",
    ]
    assert "cm3leon-7b" in cm3("list", "models").stdout


def test_info_and_verify(tmp_path: Path) -> None:
    with artefact.writing(tmp_path / "x", kind="sample", provenance={"seed": 1}) as folder:
        (folder / "a.txt").write_text("hello")
    shown = json.loads(cm3("info", tmp_path / "x", "--json").stdout)
    assert (shown["kind"], shown["bytes"], shown["provenance"]) == ("sample", 5, {"seed": 1})
    assert cm3("verify", tmp_path / "x").returncode == 0
    (tmp_path / "x" / "a.txt").write_text("hellO")
    assert_one_sentence(cm3("verify", tmp_path / "x"), 4, "a.txt", "damaged")
    assert_one_sentence(cm3("info", tmp_path / "nowhere"), 4, "no such folder")


def test_pictures_that_cannot_be_used(tmp_path: Path, command) -> None:
    data, out = tmp_path / "pictures", tmp_path / "out"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "one.png")
    (data / "one.txt").write_text("one picture")
    command.fails(2, ["1 usable pairs", "16"], "quickstart", "--data", data, "--out", out)
    assert not (out / "data").exists()
    command.fails(2, ["--minutes"], "quickstart", "--minutes", "0")
    command.fails(2, ["--minutes", "number"], "quickstart", "--minutes", "many")
    command.fails(2, ["does not exist"], "quickstart", "--data", tmp_path / "none", "--out", out)
    command.fails(2, ["no model folder"], "caption", tmp_path / "none", data / "one.png")


def test_data_check_reports_what_is_wrong(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "text": "fine"}, {"image": "missing.png", "text": "no picture"}, {"image": "a.png", "text": ""}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = cm3("sft", "data", "check", tmp_path / "data.jsonl", "--format", "pairs", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["ok"] == 1
    assert sum(found["rejected"].values()) == 2
    assert {problem["line"] for problem in found["problems"]} == {2, 3}
