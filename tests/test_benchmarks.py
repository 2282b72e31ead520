"""The benchmarks as commands: what `make bench` runs, which commit it writes down, and that studies know whose runs they read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as bench
from benchmarks import vqgan_quantizers
from cm3.core.errors import UsageError


def test_every_benchmark_is_a_command() -> None:
    for path in bench.HERE.glob("*.py"):
        assert path.stem in bench.NOT_BENCHMARKS or "__main__" in path.read_text("utf-8"), path.name


def test_the_commit_of_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert bench.commit() == {}
    file = tmp_path / "file"
    file.write_text("a")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "file"], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert bench.commit() == {"commit": head.stdout.strip()}
    file.write_text("b")
    assert bench.commit() == {"commit": head.stdout.strip() + "-dirty"}


def test_runs_of_the_quantizer_study_are_those_of_its_data_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(vqgan_quantizers.rows()) == []
    assert "--data" in capsys.readouterr().err
    rng = np.random.default_rng(0)
    for name in ("drawings", "others"):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.fromarray(rng.integers(256, size=(16, 16, 3), dtype=np.uint8)).save(tmp_path / name / f"{number}.png")
    for name, value in {"STEPS": 21, "SIDE": 16, "CODES": 4, "BATCH": 4, "ARMS": {"vq": {}}}.items():
        monkeypatch.setattr(vqgan_quantizers, name, value)
    places = {"data": str(tmp_path / "drawings"), "runs": str(tmp_path / "runs")}
    first = list(vqgan_quantizers.rows(**places))
    assert len(first) == 4
    assert list(vqgan_quantizers.rows(**places, most=0)) == first
    with pytest.raises(UsageError, match=r"data\.fingerprint="):
        list(vqgan_quantizers.rows(str(tmp_path / "others"), places["runs"]))
    monkeypatch.setattr(vqgan_quantizers, "CODES", 8)
    assert list(vqgan_quantizers.rows(**places, most=0)) == []
