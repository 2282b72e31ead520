"""Writing beside the training: what is written is the moment of the save, and failures are heard."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from cm3.core.artefact import verify
from cm3.core.errors import StorageError
from cm3.train import checkpoints as checkpoints_module
from cm3.train import tensor_files
from cm3.train.background import BackgroundWriter
from cm3.train.checkpoints import Checkpoints
from cm3.train.state import RunState
from cm3.train.tensor_files import read_tensors


def test_failures_are_raised_once_and_at_the_next_look():
    writer, go = BackgroundWriter(), threading.Event()

    def fail() -> None:
        go.wait(10)
        raise StorageError("full")

    writer.start(fail)
    writer.raise_failure()  # nothing has failed yet, and this does not wait
    go.set()
    with pytest.raises(StorageError, match="full"):
        writer.wait()
    writer.wait()


def test_asynchronous_equals_synchronous(tmp_path, settings, train_quietly, tiny_task, state_hashes):
    for name, background in (("sync", False), ("async", True)):
        train_quietly(tiny_task(), settings(async_save=background), tmp_path / name)
    for step in (6, 8):
        assert state_hashes(tmp_path / "async", step) == state_hashes(tmp_path / "sync", step)


def test_what_is_saved_is_the_moment_of_the_call(tmp_path, settings, monkeypatch):
    """The weights change while the writer is held back; tied weights stay tied in the copy."""
    hold, model = threading.Event(), torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    original = tensor_files.save_file
    monkeypatch.setattr(tensor_files, "save_file", lambda *arguments, **options: (hold.wait(10), original(*arguments, **options)))
    state, checkpoints = RunState({"model": model}, {}), Checkpoints(tmp_path, keep=1)
    checkpoints.save(state, settings(async_save=True), 1)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    hold.set()
    checkpoints.background.wait()
    folder = tmp_path / "checkpoints" / "step-00000000"
    verify(folder, "checkpoint")
    saved = read_tensors(folder / "module-model.safetensors")
    assert torch.equal(saved["0.weight"], before)
    assert saved["1.weight"] is saved["0.weight"]


def test_a_failing_writer_stops_the_run_soon_and_harms_nothing(tmp_path, settings, train_quietly, tiny_task, monkeypatch):
    calls = []

    def full(folder, *arguments, **options):
        calls.append(folder)
        if len(calls) == 2:
            raise StorageError("no space left")
        return original(folder, *arguments, **options)

    original = checkpoints_module.writing
    monkeypatch.setattr(checkpoints_module, "writing", full)
    slow = tiny_task(lambda step: time.sleep(0.02))
    with pytest.raises(StorageError, match="no space left"):
        train_quietly(slow, settings(async_save=True, checkpoint_every=2, steps=40), tmp_path)
    assert max(step for step, _, _ in slow.calls) < 8
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
