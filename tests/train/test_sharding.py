"""FSDP2 with two gloo processes: the numbers of one process, checkpoints that any number of processes reads."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cm3.core.artefact import read_json, verify
from cm3.core.errors import ArtefactError, Preempted
from cm3.core.seeding import torch_generator
from cm3.train.config import TrainConfig
from cm3.train.metrics import read_records
from cm3.train.optimizers import split_decay
from cm3.train.sharding import blocks_of, is_sharded
from cm3.train.tensor_files import TensorTable

IDS, WIDTH = 11, 6  # neither can be halved evenly with its neighbors: 11 rows are 6 and 5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(x)))


class Model(nn.Module):
    """Two blocks between an embedding and a head that share one weight."""

    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(IDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, IDS, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros(1))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(std=0.3, generator=torch_generator(3, parameter.numel()))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Task:
    """Predicts an id from an id; micro-batches count unequally."""

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {"model": Model()}
        self.was_sharded = []

    def parameter_groups(self):
        return {"model": split_decay(self.modules["model"].named_parameters())}

    def batch(self, step, shard):
        return torch.randint(IDS, (8 // shard.count, 2), generator=torch_generator(7, step, shard.index))

    def loss(self, name, batch, step):
        self.was_sharded.append(all(is_sharded(parameter) for parameter in self.modules["model"].parameters()))
        loss = F.cross_entropy(self.modules["model"](batch[:, 0]), batch[:, 1])
        return loss, {"weight": float(1 + batch[0, 0] % 3), "tokens": len(batch)}

    def evaluate(self):
        ids = torch.arange(IDS)
        return {"loss": float(F.cross_entropy(self.modules["model"](ids), ids))}


def run_on_two(on_two, train_quietly, config: TrainConfig, folder) -> list[int]:
    def work() -> None:
        task = Task()
        train_quietly(task, config, folder)
        assert all(task.was_sharded)

    return on_two(work)


def tensors(folder, step: int) -> dict[str, torch.Tensor]:
    found = {}
    for stem in ("module-model", "optimizer-model", "ema"):
        table = TensorTable(folder / "checkpoints" / f"step-{step:08d}", stem)
        found |= {f"{stem}/{name}": table.read_like(name, None) for name in table.names()}
    return found


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    assert set(one) == set(two)
    return all(one[name].shape == two[name].shape and torch.allclose(one[name], two[name], atol=2e-6) for name in one)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_sharded_equals_one_process_also_after_resuming_on_another_number(optimizer, tmp_path, settings, train_quietly, on_two):
    base = {"optimizer": optimizer, "steps": 5, "checkpoint_every": 5, "eval_every": 2, "schedule": "constant"}
    train_quietly(Task(), settings(**base, accumulation_steps=2), tmp_path / "one")
    wanted = tensors(tmp_path / "one", 5)
    sharded = settings(**base, sharding="full")
    assert run_on_two(on_two, train_quietly, sharded, tmp_path / "two") == [0, 0]
    folder = tmp_path / "two" / "checkpoints" / "step-00000005"
    verify(folder, "checkpoint")
    assert len(list(folder.glob("module-model.rank-*-of-00002.safetensors"))) == 2
    assert equal(tensors(tmp_path / "two", 5), wanted)

    longer = {**base, "steps": 8}
    train_quietly(Task(), settings(**longer, accumulation_steps=2), tmp_path / "whole")
    with pytest.warns(UserWarning, match="processes 2 -> 1"):
        train_quietly(Task(), settings(**longer, accumulation_steps=2), tmp_path / "two")  # two processes, then one
    assert equal(tensors(tmp_path / "two", 8), tensors(tmp_path / "whole", 8))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *arguments, **options: None)
        assert run_on_two(on_two, train_quietly, settings(**longer, sharding="full"), tmp_path / "one") == [0, 0]  # one, then two
    assert equal(tensors(tmp_path / "one", 8), tensors(tmp_path / "whole", 8))
    assert read_json(tmp_path / "one" / "checkpoints" / "step-00000008" / "state.json")["processes"] == 2


@pytest.mark.parametrize("sharding", ["full", "none"])
def test_a_signal_during_an_evaluation_stops_both_in_the_same_place(sharding, tmp_path, settings, train_quietly, on_two):
    """Of a process that left alone the other would wait for its part of the weights."""
    config = settings(steps=4, eval_every=2, checkpoint_every=0, sharding=sharding)

    class Stopped(Task):
        def evaluate(self):
            for number in range(1000):
                if number == 5 and torch.distributed.get_rank() == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.02)
                super().evaluate()
            return {}

    def work() -> None:
        with pytest.raises(Preempted, match="after step 2"):
            train_quietly(Stopped(), config, tmp_path)

    started = time.monotonic()
    assert on_two(work) == [0, 0]
    assert time.monotonic() - started < 10
    verify(tmp_path / "checkpoints" / "step-00000002")
    assert on_two(lambda: train_quietly(Task(), config, tmp_path)) == [0, 0]
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl") if record["kind"] == "eval"] == [2, 4]


def test_dying_anywhere_in_a_sharded_save_loses_nothing(tmp_path, settings, train_quietly, on_two, monkeypatch, times):
    """One run dies at named moments of a save (at all of them with CM3_DRILLS=3), each time one step later, and goes on."""
    points = ("state-written", "retire-renamed", "modules-written", "save-done", "save-started", "optimizers-written", "retained")
    chosen = [points[number % len(points)] for number in times(3)]
    config = settings(steps=len(chosen) + 3, checkpoint_every=1, keep_checkpoints=1, sharding="full")
    for step, point in enumerate(chosen, start=2):
        with monkeypatch.context() as patched:
            patched.setenv("CRASH_AT", f"{point}@{step}")
            codes = run_on_two(on_two, train_quietly, config, tmp_path / "run")
        assert 137 in codes, point
        assert 0 not in codes, point
        newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
        verify(newest, "checkpoint")
        assert int(newest.name.removeprefix("step-")) >= step - 1, point
    for name in ("run", "whole"):
        assert run_on_two(on_two, train_quietly, config, tmp_path / name) == [0, 0]
    assert [entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{config.steps:08d}"]
    ended, expected = (tensors(tmp_path / name, config.steps) for name in ("run", "whole"))
    assert all(torch.equal(ended[name], expected[name]) for name in expected)


def test_accumulation_and_a_wrong_checkpoint(tmp_path, settings, train_quietly, on_two):
    config = settings(steps=3, accumulation_steps=2, sharding="full", ema_decay=0.5)
    train_quietly(Task(), settings(steps=3, accumulation_steps=4, ema_decay=0.5), tmp_path / "one")
    assert run_on_two(on_two, train_quietly, config, tmp_path / "two") == [0, 0]
    assert equal(tensors(tmp_path / "two", 3), tensors(tmp_path / "one", 3))

    class Wider(Task):
        def __init__(self) -> None:
            super().__init__()
            self.modules["model"].blocks[0].up = nn.Linear(WIDTH, 5)

    def refused() -> None:
        with pytest.raises(ArtefactError, match="does not fit this run"):
            train_quietly(Wider(), config, tmp_path / "two")

    assert on_two(refused) == [0, 0]


def test_blocks_are_found_by_the_names_a_model_gives():
    model = Model()
    assert blocks_of(model) == list(model.blocks)
    assert blocks_of(nn.Linear(2, 2)) == []
