"""The whole road at toy size: every stage real, a few steps each; then the folder it leaves is used as a user would."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cm3 import cli
from cm3.core import artefact
from cm3.pipeline import CM3Pipeline
from cm3.quickstart import QuickstartConfig, run_quickstart

TASKS = {"tokenizer", "text_to_image", "captioning", "vqa", "editing", "infilling", "retrieval"}


def toy(out: Path, **settings: object) -> QuickstartConfig:
    return QuickstartConfig(out=out, minutes=0.02, held_out=4, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("quickstart") / "run"
    return out, run_quickstart(toy(out), lambda line: None)


def test_result_has_every_task_and_stage(finished: tuple[Path, dict]) -> None:
    out, result = finished
    assert set(result["tasks"]) == TASKS
    for score in result["tasks"].values():
        assert set(score) == {"accuracy", "low", "high", "n", "chance", "ceiling", "split"}
        assert 0 <= score["low"] <= score["accuracy"] <= score["high"] <= 1
        assert score["n"] == 4
    assert all(stage["seconds"] >= 0 and stage["peak_memory_bytes"] > 0 for stage in result["stages"].values())
    assert json.loads((out / "result.json").read_text()) == result


def test_report_shows_every_section(finished: tuple[Path, dict]) -> None:
    page = (finished[0] / "index.html").read_text()
    sections = re.findall(r"<h2>(.*?)</h2>", page)
    for title in ("What it can do", "Text to picture", "Picture to text", "Questions and answers", "Edits", "Infilling"):
        assert title in sections
    for title in ("Retrieval", "Tokenizer round trip", "Training", "Stages"):
        assert title in sections


def test_the_model_folder_does_everything(finished: tuple[Path, dict], tmp_path: Path) -> None:
    out, _ = finished
    artefact.verify(out / "model", kind="model")
    pipe = CM3Pipeline.from_pretrained(out / "model")
    prompt = "a large red circle at the top left on a white background"
    one, four = pipe.draw(prompt, n=1, seed=3), pipe.draw(prompt, n=4, seed=3)
    assert (one[0].codes == four[0].codes).all()
    picture = one[0].image
    assert picture.size == (48, 48)
    assert isinstance(pipe.caption(picture), str)
    assert isinstance(pipe.ask(picture, "how many objects are there?"), str)
    assert pipe.edit(picture, "make the background black").size == picture.size
    assert pipe.infill(picture, box=(0, 0, 48, 16), prompt=prompt).size == picture.size
    assert len(pipe.generate(prompt, n=1, best_of=2, retrieve=1, guidance=2.0)) == 1
    assert len(pipe.memory.search(text="a red circle", k=3)) == 3


def test_the_python_example_of_the_readme_runs(finished: tuple[Path, dict]) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    [example] = re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    code = compile(example.replace("quickstart/model", str(finished[0] / "model")), "README.md", "exec")
    exec(code, names)
    assert len(names["images"]) == 4
    assert isinstance(names["answer"], str)


def test_second_run_skips_every_stage_and_a_damaged_model_is_made_again(finished: tuple[Path, dict]) -> None:
    out, result = finished
    lines: list[str] = []
    assert run_quickstart(toy(out), lines.append) == result
    assert all("stands" in line for line in lines)
    (out / "model" / "config.json").write_text("{}")
    lines.clear()
    run_quickstart(toy(out), lines.append)
    assert [line.split(":")[0].split("] ")[1] for line in lines if line.endswith(" s") and "done" in line] == ["model"]
    artefact.verify(out / "model", kind="model")


def test_own_pictures_take_the_same_road(tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    data.mkdir()
    for index in range(48):
        Image.new("RGB", (40 + index, 50), (5 * index, 255 - 5 * index, 90)).save(data / f"{index:02d}.png")
        (data / f"{index:02d}.txt").write_text(f"picture number {index} of a colour")
    result = run_quickstart(toy(tmp_path / "run", data=data), lambda line: None)
    real = result["real"]
    for name in ("psnr_db", "ssim", "recall_at_1", "recall_at_10", "bits_per_image_token", "bits_per_text_token"):
        assert isinstance(real[name], float)
    assert "nearest training picture" in (tmp_path / "run" / "index.html").read_text()


def test_interruption_leaves_nothing_half_written(tmp_path: Path, in_child: Callable[..., int]) -> None:
    """SIGINT in the middle: exit code 130, one sentence, and the same command finishes from there."""
    out = tmp_path / "run"

    def quickstart() -> None:
        os.dup2(os.open(tmp_path / "errors", os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        os._exit(cli.run(["quickstart", "--out", str(out), "--minutes", "0.3"]))

    process = in_child(quickstart, wait=False)
    while not (out / "stages" / "data.json").exists():
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.05)
    time.sleep(1.0)
    os.kill(process, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    errors = (tmp_path / "errors").read_text()
    assert "Traceback" not in errors
    assert "interrupted" in errors
    assert not [entry for entry in out.rglob(".tmp-*") if not entry.name.startswith(".tmp-model")]
