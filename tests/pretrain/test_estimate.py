"""The estimate: it adds up, it follows the machine, and a refusal says what to change so that the run fits."""

from __future__ import annotations

import re

import pytest
import torch

from cm3.core.errors import UsageError
from cm3.model.counting import count_parameters, flops_per_token
from cm3.model.presets import create_model, preset
from cm3.pretrain import estimate as module
from cm3.pretrain.estimate import estimate_run
from cm3.sequences.loader import LoaderConfig
from cm3.train.config import TrainConfig
from cm3.train.optimizers import NamedOptimizer, split_decay

SMALL = preset("tiny", vocab_size=500)
LARGE = preset("cm3leon-350m")
LOADER = LoaderConfig(row_length=4096, batch_size=8)
CPU = TrainConfig(device="cpu", steps=100)


@pytest.fixture
def room(monkeypatch):
    """Sets how much memory there is, in GiB."""
    return lambda gib: monkeypatch.setattr(module, "available_memory", lambda device: int(gib * 2**30))


def changed(text: str) -> tuple[LoaderConfig, TrainConfig]:
    """The configuration after following the advice in a message."""
    loader, train = {}, {}
    for section, key, value in re.findall(r"(loader|train)\.(\w+)=(\w+)", text):
        (loader if section == "loader" else train)[key] = {"true": True}.get(value, int(value) if value.isdigit() else value)
    return LOADER.model_copy(update=loader), CPU.model_copy(update=train)


def test_tokens_operations_and_state_by_hand(monkeypatch):
    found = estimate_run(SMALL, LoaderConfig(row_length=128, batch_size=4), CPU, context=64)
    assert found.examples == 100 * 4 * 128
    assert found.flops == pytest.approx(found.examples * flops_per_token(SMALL, 64))
    assert found.state_bytes == 16 * count_parameters(SMALL).total
    assert 0 < found.seconds < 3600
    assert found.fits
    found.announce()
    assert re.search(r"0\.\dM parameters, 51,200 tokens, about \d+ MiB of .* per process, roughly", str(found))
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert estimate_run(SMALL, LOADER, CPU).examples == 4 * 100 * 8 * 4096
    shares = [estimate_run(LARGE, LOADER, CPU.model_copy(update={"sharding": kind})).state_bytes for kind in ("none", "full")]
    assert shares[1] < 0.5 * shares[0]


def test_what_a_step_holds_beside_activations():
    cpu, loader = torch.device("cpu"), LoaderConfig(row_length=128, batch_size=4)
    full, adapters = (module.step_bytes(SMALL, loader, CPU, cpu, trained) for trained in (None, 1000))
    assert full - adapters == 4 * 500 * 128  # the fp32 gradient of the output embedding
    masked, scored = (module.step_bytes(SMALL, loader, CPU, cpu, attention=name) for name in ("sdpa", "eager"))
    assert masked - full == 4 * 4 * 128**2
    assert scored - masked == 2 * 4 * 4 * 4 * 4 * 128**2  # scores and weights, fp32, heads, layers, rows
    compiled = CPU.model_copy(update={"compile": True})  # "auto" is then "sdpa"
    assert module.step_bytes(SMALL, loader, compiled, cpu) == masked


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_is_what_a_step_leaves(optimizer):
    config = TrainConfig(optimizer=optimizer, device="cpu")
    model = create_model(SMALL, 0)
    named = NamedOptimizer("model", split_decay(model.named_parameters()), config)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    named.step()
    held = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    held += [tensor for state in named.state().values() for tensor in state.values()]
    actual = sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)
    assert module.state_bytes(SMALL, config, 1) == pytest.approx(actual, rel=0.02)


@pytest.mark.parametrize(("gib", "processes"), [(20.0, 1), (9.0, 1), (4.5, 8)])
def test_the_refusal_says_what_makes_the_run_fit(room, monkeypatch, gib, processes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    room(gib)
    with pytest.raises(UsageError, match=r"the run needs about .* GiB per process .* are free; set ") as refusal:
        estimate_run(LARGE, LOADER, CPU).announce()
    loader, config = changed(str(refusal.value))
    assert (loader, config) != (LOADER, CPU)
    estimate_run(LARGE, loader, config).announce()


def test_a_far_too_large_batch_is_answered_at_once_with_the_largest_that_fits(room):
    room(20.0)
    with pytest.raises(UsageError, match="set loader.batch_size=") as refusal:
        estimate_run(LARGE, LOADER.model_copy(update={"batch_size": 10**8}), CPU).announce()
    loader, config = changed(str(refusal.value))
    estimate_run(LARGE, loader, config).announce()
    with pytest.raises(UsageError):
        estimate_run(LARGE, loader.model_copy(update={"batch_size": loader.batch_size + 1}), config).announce()


def test_what_cannot_fit_is_said_so(room):
    room(0.5)
    with pytest.raises(UsageError, match=r"choose a smaller model\.preset"):
        estimate_run(LARGE, LOADER, CPU).announce()
