"""Two processes on one machine (gloo): same result as one process that accumulates, one writer, stopping together."""

from __future__ import annotations

import os
import signal
import socket

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file

from cm3.core.errors import Preempted


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _as_rank(rank: int, port: int, work):
    """`work` as process `rank` of two, as a launcher would start it."""

    def run() -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        work()
        torch.distributed.destroy_process_group()

    return run


@pytest.fixture
def on_two(in_child):
    """Run `work` in two connected processes; returns their exit codes."""

    def run(work) -> list[int]:
        port = _free_port()
        pids = [in_child(_as_rank(rank, port, work), wait=False) for rank in range(2)]
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

    return run


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


def test_two_processes_equal_one_that_accumulates(tmp_path, settings, train_quietly, plain_task, on_two):
    alone = train_quietly(plain_task(), settings(accumulation_steps=2), tmp_path / "one")
    assert on_two(lambda: train_quietly(plain_task(), settings(), tmp_path / "two")) == [0, 0]
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
