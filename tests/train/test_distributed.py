"""Two processes on one machine (gloo): same result as one process that accumulates, one writer, stopping together."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from cm3.core.artefact import verify
from cm3.core.errors import Preempted, StorageError
from cm3.train import checkpoints

LAST = {"async_save": True, "checkpoint_every": 0}  # one save, the last


@pytest.fixture
def plain_task(tiny_task):
    """Without dropout and batch statistics, so that how a step is cut does not matter; micro-batches count unequally."""

    class Plain(tiny_task):
        def __init__(self, hook=lambda step: None):
            super().__init__(hook)
            self.modules["model"] = torch.nn.Sequential(*(self.modules["model"][i] for i in (0, 3, 4)))

        def loss(self, name, batch, step):
            loss, metrics = super().loss(name, batch, step)
            return loss, metrics | {"weight": float(1 + 3 * (batch[0, 0] > 0))}

    return Plain


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_two_processes_equal_one_that_accumulates(tmp_path, settings, train_quietly, plain_task, on_two, device):
    if device == "auto" and torch.accelerator.is_available():
        pytest.skip("two processes would share a GPU")
    alone = train_quietly(plain_task(), settings(accumulation_steps=2), tmp_path / "one")
    assert on_two(lambda: train_quietly(plain_task(), settings(device=device), tmp_path / "two")) == [0, 0]
    name = "checkpoints/step-00000008/module-model.safetensors"
    one, two = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    assert list(one) == list(two)
    assert all(torch.allclose(one[key], two[key], atol=1e-6) for key in one)
    repeated = train_quietly(plain_task(), settings(accumulation_steps=2), tmp_path / "one")
    assert repeated.history == alone.history


def test_a_signal_to_one_process_stops_both_in_the_same_step(tmp_path, settings, train_quietly, plain_task, on_two):
    class StopsInTheSecond(plain_task):
        def batch(self, step, shard):
            if (step, shard.index) == (4, 1):
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(step, shard)

    def work():
        with pytest.raises(Preempted, match="after step 5"):
            train_quietly(StopsInTheSecond(), settings(), tmp_path)

    assert on_two(work) == [0, 0]
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()


@pytest.mark.parametrize(("saving", "stopped"), [({}, False), ({"async_save": True}, False), (LAST, False), (LAST, True)])
def test_a_failure_of_one_process_ends_both(tmp_path, settings, train_quietly, plain_task, on_two, saving, stopped):
    """The disk is full for the process that writes; the other one, which would wait for it, raises the same error.

    Also when it writes beside the training, and fails between two saves, in the last one, or in that of a run that was stopped.
    """

    def stop(step):
        if stopped and step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def work():
        with pytest.raises(StorageError, match="no room here"):
            train_quietly(plain_task(stop), settings(**saving), tmp_path)

    class Full:
        def __init__(self, *arguments, **options):
            time.sleep(0.05)
            raise StorageError("no room here")

    original, checkpoints.writing = checkpoints.writing, Full
    try:
        assert on_two(work) == [0, 0]
    finally:
        checkpoints.writing = original


def test_a_killed_process_ends_the_other_within_half_a_minute(tmp_path, settings, train_quietly, plain_task, on_two):
    class DiesInTheSecond(plain_task):
        def batch(self, step, shard):
            if (step, shard.index) == (4, 1):
                os._exit(137)
            return super().batch(step, shard)

    started = time.monotonic()
    codes = on_two(lambda: train_quietly(DiesInTheSecond(), settings(), tmp_path))
    assert codes[1] == 137
    assert codes[0] not in (0, 137)
    assert time.monotonic() - started < 30
    verify(tmp_path / "checkpoints" / "step-00000003")
