"""Run files: TOML and overrides are checked; wrong keys and values get one sentence that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import model_validator

from cm3.core.artefact import read_json
from cm3.core.errors import InputError, UsageError
from cm3.core.runfile import RunConfig, load_run, write_resolved


class Inner(RunConfig):
    steps: int = 10
    learning_rate: float = 1e-3


class Span(RunConfig):
    first: int
    second: int

    @model_validator(mode="before")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        if isinstance(value, list) and value != sorted(value):
            raise ValueError(f"the first must be smaller, got {value[0]}, {value[1]}")
        return value


class Run(RunConfig):
    out: Path = Path("runs/x")
    name: str = "a"
    train: Inner = Inner()
    extra: Inner | None = None
    span: Span | None = None


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_file_and_overrides(tmp_path: Path) -> None:
    path = toml(tmp_path, 'name = "b"\n[train]\nsteps = 5\n')
    run = load_run(Run, path, ["train.learning_rate=2e-4", "out=runs/y", "extra.steps=3"])
    assert (run.name, run.train.steps, run.train.learning_rate, run.out) == ("b", 5, 2e-4, Path("runs/y"))
    assert run.extra is not None
    assert run.extra.steps == 3
    assert load_run(Run, None).train.steps == 10


def test_resolved_configuration_is_written_and_reads_back(tmp_path: Path) -> None:
    run = load_run(Run, None, ["train.steps=7"])
    assert Run.model_validate(read_json(write_resolved(run, tmp_path))) == run


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[train]\nstep = 5\n", [], r"unknown key 'train\.step'; did you mean 'steps'"),
        ("", ["nmae=x"], "unknown key 'nmae'; did you mean 'name'"),
        ("[extra]\nstps = 5\n", [], r"unknown key 'extra\.stps'; did you mean 'steps'"),
        ('[train]\nsteps = "many"\n', [], r"key 'train\.steps': .*integer.*got 'many'"),
        ("train = 3\n", [], "^[^;]*key 'train': expected a section, got 3$"),
        ("[train]\nsteps = 0.5\n", [], r"key 'train\.steps': expected a valid integer"),
        ("", ["train.odd=3", "train.even=2"], r"unknown key 'train\.odd'.*; unknown key 'train\.even'"),
        ("", ["span=[5,2]"], r"key 'span': the first must be smaller, got 5, 2$"),
        ("", ["extra=[" + "1," * 200 + "]"], r"key 'extra': expected a section, got \[1, 1.*…$"),
        ("", ["train"], "has no '='"),
        ("", ["name=x", "name.y=1"], "is a value, not a section"),
    ],
)
def test_wrong_keys_and_values(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_run(Run, toml(tmp_path, text), overrides)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_run(Run, tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"cannot be read: Is a directory; give a TOML file"):
        load_run(Run, tmp_path)
    for text in ("a = = b", "a = " + "[" * 10_000):
        with pytest.raises(InputError, match="not valid TOML"):
            load_run(Run, toml(tmp_path, text))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_run(Run, binary)
