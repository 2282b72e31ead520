"""State as tensors: tied and strided weights survive a round trip, optimizer states go back to the parameters they belong to."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn

from cm3.core.errors import UsageError
from cm3.train.config import TrainConfig
from cm3.train.optimizers import NamedOptimizer
from cm3.train.state import RunState, seed_globally
from cm3.train.tensor_files import read_tensors, write_tensors


class Tied(nn.Module):
    """Two names for one weight, as in a language model with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_tied_weights_are_written_once_and_come_back_under_both_names(tmp_path):
    path = tmp_path / "m.safetensors"
    write_tensors(path, Tied().state_dict())
    with safe_open(path, framework="pt") as stream:
        assert list(stream.keys()) == ["embedding.weight"]
    target = Tied()
    target.load_state_dict(tensors := read_tensors(path))
    assert set(tensors) == {"embedding.weight", "head.weight"}
    assert target.head.weight is target.embedding.weight


def test_views_of_one_storage_and_strided_tensors_keep_their_values(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"first": whole[:2], "second": whole[2:], "turned": whole.T, "count": torch.tensor(3), "none": torch.zeros(0)}
    write_tensors(tmp_path / "t.safetensors", tensors)
    read = read_tensors(tmp_path / "t.safetensors")
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_optimizer_state_returns_to_its_parameters_in_their_layout(tmp_path):
    def make() -> RunState:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Conv2d(4, 3, 2)).to(memory_format=torch.channels_last)
        return RunState({"net": net}, {"net": NamedOptimizer("net", [{"params": list(net.parameters())}], TrainConfig())})

    source, target = make(), make()
    for parameter in source.modules["net"].parameters():
        parameter.grad = torch.randn_like(parameter)
    source.optimizers["net"].step()
    for stem, tensors in source.tables().items():
        write_tensors(tmp_path / f"{stem}.safetensors", tensors)
    target.read(tmp_path)
    before, after = source.optimizer_tensors("net"), target.optimizer_tensors("net")
    entries = [f"{layer}.{kind}" for layer in (0, 1) for kind in ("weight", "bias")]
    assert set(before) == set(after) == {f"net/{entry}/{key}" for entry in entries for key in ("step", "exp_avg", "exp_avg_sq")}
    assert all(torch.equal(before[name], after[name]) and before[name].stride() == after[name].stride() for name in before)


def test_a_parameter_outside_the_modules_is_refused():
    stray = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="'net' updates a parameter of no module"):
        RunState({"net": nn.Linear(2, 2)}, {"net": NamedOptimizer("net", [{"params": list(stray.parameters())}], TrainConfig())})


def test_seeding_reaches_all_three_generators(random_state):
    seed_globally(torch.device("cpu"), 1, "step", 2)
    first = random_state()
    torch.rand(1)
    seed_globally(torch.device("cpu"), 1, "step", 2)
    assert random_state() == first
    seed_globally(torch.device("cpu"), 1, "step", 3)
    assert all(mine != other for mine, other in zip(random_state(), first))
