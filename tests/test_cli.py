"""The command line: every command has help, a user's mistake is one sentence and the documented exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from cm3.core import artefact


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CM3_PROGRESS": "off", "COLUMNS": "120"}
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_help_teaches() -> None:
    done = python("-m", "cm3.cli", "--help")
    assert done.returncode == 0
    for command in ("quickstart", "generate", "caption", "ask", "edit", "infill", "tokenize", "train", "eval", "retrieval"):
        assert command in done.stdout
    assert "cm3 quickstart" in done.stdout


@pytest.mark.parametrize(
    "name",
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
def test_every_command_has_help(command, name: str) -> None:
    assert len(command.works(*name.split(), "--help").splitlines()) > 4


def test_version(command) -> None:
    assert command.works("--version").startswith("cm3 0.")


NO_RUN_FILE = """
import sys
from cm3 import cli
codes = [cli.run([*command, "none.toml"]) for command in (["train"], ["sft", "train"])]
print(codes, "torch" in sys.modules)
"""


def test_a_run_file_that_is_none_is_told_before_torch_is_loaded() -> None:
    done = python("-c", NO_RUN_FILE)
    assert done.stdout == "[2, 2] False\n"
    assert done.stderr == 2 * "cm3: error: run file none.toml does not exist; check the path\n"


def test_list(command) -> None:
    assert "tasks" in command.works("list").split()
    tasks = ["text_to_image", "captioning", "vqa", "editing", "infilling"]
    assert json.loads(command.works("list", "tasks", "--json")) == tasks
    assert "cm3leon-7b" in command.works("list", "models")


def test_info_and_verify(tmp_path: Path, command) -> None:
    with artefact.writing(tmp_path / "x", kind="sample", provenance={"seed": 1}) as folder:
        (folder / "a.txt").write_text("hello")
    shown = json.loads(command.works("info", tmp_path / "x", "--json"))
    assert (shown["kind"], shown["bytes"], shown["provenance"]) == ("sample", 5, {"seed": 1})
    command.works("verify", tmp_path / "x")
    (tmp_path / "x" / "a.txt").write_text("hellO")
    command.fails(4, ["a.txt", "damaged"], "verify", tmp_path / "x")
    command.fails(4, ["no such folder"], "info", tmp_path / "nowhere")


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


def test_data_check_reports_what_is_wrong(tmp_path: Path, command) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "text": "fine"}, {"image": "missing.png", "text": "no picture"}, {"image": "a.png", "text": ""}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = command("sft", "data", "check", tmp_path / "data.jsonl", "--format", "pairs", "--json")
    found = json.loads(done.out)
    assert done.code == 1
    assert found["ok"] == 1
    assert sum(found["rejected"].values()) == 2
    assert {problem["line"] for problem in found["problems"]} == {2, 3}
