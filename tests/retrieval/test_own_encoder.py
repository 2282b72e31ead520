"""The encoder that a build trains for itself: kept when the build is cut short, taken up for the same pairs, gone afterwards."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

import pytest

import retrieval
from cm3.core.artefact import fingerprint
from cm3.core.errors import InputError, RunLockedError, UsageError
from cm3.documents.document import Document
from cm3.documents.writers import write_documents
from cm3.train.runlock import run_lock
from retrieval import bank_writer, own_encoder
from retrieval.bank_writer import BankWriter
from retrieval.config import BuildConfig, TrainEncoderConfig
from retrieval.encoders.presets import EncoderShape

SMALL = BuildConfig(batch_size=4)
Steps = list[tuple[str, int]]


@pytest.fixture
def steps(tiny_shape: EncoderShape, monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Small trainings; what they went through stands in the list."""
    train = {"steps": 4, "tensorboard": False, "checkpoint_every": 2}
    settings = TrainEncoderConfig.model_validate({"shape": tiny_shape.model_dump(), "batch_size": 24, "train": train})
    monkeypatch.setattr(own_encoder, "SETTINGS", settings)
    monkeypatch.setattr(own_encoder, "LEAST_PAIRS", 8)
    monkeypatch.setattr(bank_writer, "CHECKPOINT_S", 0.0)
    seen: Steps = []
    for module in ("loop", "stepping"):
        monkeypatch.setattr(f"cm3.train.{module}.crash_point", lambda name, step: seen.append((name, step)))
    return seen


@pytest.fixture
def whole(pairs: list[Document], steps: Steps, tmp_path: Path) -> str:
    """The fingerprint of the bank of ./data, built without a stop."""
    write_documents(pairs, tmp_path / "data")
    retrieval.build(tmp_path / "data", tmp_path / "whole", config=SMALL)
    assert len(updates(steps)) == 4
    steps.clear()
    return fingerprint(tmp_path / "whole")


def updates(steps: Steps) -> list[int]:
    return [step for name, step in steps if name == "updated"]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def stop_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: int = signal.SIGKILL) -> None:
    """Let a build in a process of its own get a signal when its encoder is half trained, or when eight documents are encoded."""
    child = os.fork()
    if child == 0:
        add = BankWriter.add

        def add_or_die(writer: BankWriter, *arguments: object) -> int:
            if writer.count == 8:
                os.kill(os.getpid(), number)
            return add(writer, *arguments)  # type: ignore[arg-type]

        def train_or_die(name: str, step: int) -> None:
            if (name, step) == ("updated", 2):
                os.kill(os.getpid(), number)

        try:
            if moment == "encoding":
                BankWriter.add = add_or_die  # type: ignore[method-assign, assignment]
            else:
                monkeypatch.setattr("cm3.train.stepping.crash_point", train_or_die)
            retrieval.build(tmp_path / "data", tmp_path / "bank", config=SMALL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (-number if number == signal.SIGKILL else 1)
    assert not (tmp_path / "bank").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_build_takes_its_encoder_up_again(
    number: int, whole: str, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_build(tmp_path, monkeypatch, "encoding", number)
    assert names(tmp_path) == [".bank.building", ".bank.encoder", "data", "whole"]
    resumed = []
    left_over = BankWriter._left_over
    monkeypatch.setattr(BankWriter, "_left_over", lambda writer: resumed.append(left_over(writer)) or resumed[-1])
    with caplog.at_level(logging.WARNING):
        retrieval.build(tmp_path / "data", tmp_path / "bank", config=SMALL)
    assert updates(steps) == []
    assert "takes up the encoder" in caplog.text
    assert resumed == [8]  # the same encoder: what it encoded counts
    assert fingerprint(tmp_path / "bank") == whole
    assert names(tmp_path) == ["bank", "data", "whole"]


def test_a_killed_training_goes_on(whole: str, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_build(tmp_path, monkeypatch, "training")
    retrieval.build(tmp_path / "data", tmp_path / "bank", config=SMALL)
    assert updates(steps) == [2, 3]
    assert fingerprint(tmp_path / "bank") == whole
    assert names(tmp_path) == ["bank", "data", "whole"]


def test_other_pairs_train_anew_and_nothing_is_left(
    whole: str, pairs: list[Document], steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in ("training", "encoding"):
        stop_build(tmp_path, monkeypatch, moment)
    changed = Document.pair(pairs[10].id, "other words", pairs[10].images[0].load())
    write_documents([*pairs[:10], changed, *pairs[11:]], tmp_path / "other")
    retrieval.build(tmp_path / "other", tmp_path / "bank", config=SMALL)
    assert updates(steps) == [0, 1, 2, 3]
    assert fingerprint(tmp_path / "bank") != whole
    assert names(tmp_path) == ["bank", "data", "other", "whole"]


def test_a_damaged_encoder_is_trained_again(whole: str, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_build(tmp_path, monkeypatch, "encoding")
    (weights,) = (tmp_path / ".bank.encoder").glob("*/model.safetensors")
    os.truncate(weights, weights.stat().st_size - 1)
    retrieval.build(tmp_path / "data", tmp_path / "bank", config=SMALL)
    assert len(updates(steps)) == 4
    assert fingerprint(tmp_path / "bank") == whole


def test_an_encoder_that_is_given_leaves_nothing_of_an_own_one(
    whole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_build(tmp_path, monkeypatch, "training")
    retrieval.build(tmp_path / "data", tmp_path / "bank", "hashing", SMALL)
    assert names(tmp_path) == ["bank", "data", "whole"]


def test_a_second_builder_is_refused_before_it_trains(whole: str, steps: Steps, tmp_path: Path) -> None:
    with run_lock(tmp_path / ".bank.encoder"), pytest.raises(RunLockedError, match="in use by process"):
        retrieval.build(tmp_path / "data", tmp_path / "bank", config=SMALL)
    assert steps == []


def test_an_unknown_index_is_refused_before_anything_is_trained(pairs: list[Document], steps: Steps, tmp_path: Path) -> None:
    write_documents(pairs, tmp_path / "data")
    with pytest.raises(UsageError, match="flat"):
        retrieval.build(tmp_path / "data", tmp_path / "bank", config=BuildConfig(index="flatt"))
    assert steps == []
    assert names(tmp_path) == ["data"]


def test_what_fails_before_training_leaves_nothing(steps: Steps, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError):
        retrieval.build(tmp_path / "data", tmp_path / "bank")
    assert names(tmp_path) == ["data"]
