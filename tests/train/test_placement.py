"""Placement: batches of any shape of container are moved, modes come back as they were."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cm3.core.errors import UsageError
from cm3.train.config import TrainConfig
from cm3.train.placement import modes, place_modules, to_device

Point = namedtuple("Point", "x y")


@dataclass(frozen=True)
class Record:
    tokens: torch.Tensor
    names: tuple[str, ...]


def test_every_tensor_moves_and_everything_else_stays():
    meta = torch.device("meta")
    one = torch.ones(1)
    moved = to_device({"a": [one, (one, 3)], "b": Record(one, ("n",)), "c": Point(one, "y"), "d": None}, meta)
    tensors = [moved["a"][0], moved["a"][1][0], moved["b"].tokens, moved["c"].x]
    assert all(tensor.device == meta for tensor in tensors)
    assert (moved["a"][1][1], moved["b"].names, moved["c"].y, moved["d"]) == (3, ("n",), "y", None)
    assert isinstance(moved["b"], Record)
    assert isinstance(moved["c"], Point)


def test_modes_come_back_part_by_part():
    trained = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    frozen = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False)
    with modes({"trained": trained, "frozen": frozen}, training=True):
        assert trained[1].training
        assert not frozen[0].training
    assert [part.training for part in trained.modules()] == [True, True, False]
    assert frozen[0].training


def test_activation_checkpointing_reaches_the_models_that_can():
    class Able(nn.Module):
        supports_gradient_checkpointing = True
        enabled = None

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def gradient_checkpointing_enable(self, options):
            self.enabled = options

    able, frozen = Able(), Able().requires_grad_(False)
    task = SimpleNamespace(modules={"model": nn.Sequential(able), "judge": frozen, "other": nn.Linear(2, 2)})
    place_modules(task, Accelerator(cpu=True), TrainConfig(activation_checkpointing=True))
    assert able.enabled == {"use_reentrant": False}
    assert frozen.enabled is None
    with pytest.raises(UsageError, match="no module of this run supports it"):
        task = SimpleNamespace(modules={"other": nn.Linear(2, 2)})
        place_modules(task, Accelerator(cpu=True), TrainConfig(activation_checkpointing=True))


def test_one_process_has_nothing_to_shard_over():
    task = SimpleNamespace(modules={"model": nn.Linear(2, 2)})
    with pytest.raises(UsageError, match=r"there is one; start several \(torchrun --nproc-per-node 2 -m cm3\.pretrain"):
        place_modules(task, Accelerator(cpu=True), TrainConfig(sharding="full"))


def test_modules_keep_their_names_when_placed():
    class Task:
        modules = {"model": nn.Linear(2, 2)}  # noqa: RUF012

    plain = place_modules(Task(), Accelerator(cpu=True), TrainConfig())
    assert list(plain["model"].state_dict()) == ["weight", "bias"]
