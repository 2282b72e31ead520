"""The trial: what one example keeps and computes, by hand; the task is as before; a refusal's advice makes the run fit."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from cm3.core.errors import UsageError
from cm3.core.seeding import torch_generator
from cm3.train import trial
from cm3.train.config import TrainConfig
from cm3.train.optimizers import split_decay
from cm3.train.task import Shard

WIDTH, HIDDEN, BATCH = 6, 20, 8
CPU = TrainConfig(device="cpu", precision="fp32", steps=10)


class TwoNetworks:
    """A network with dropout and a buffer that every pass changes, and a judge that starts at step 2."""

    def __init__(self) -> None:
        self.modules = {
            "model": nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Dropout(0.5), nn.Linear(HIDDEN, WIDTH)),
            "count": nn.Module(),
            "judge": nn.Linear(WIDTH, 1),
        }
        self.modules["count"].register_buffer("passes", torch.zeros(()))

    def parameter_groups(self):
        return {name: split_decay(self.modules[name].named_parameters()) for name in ("model", "judge")}

    def batch(self, step: int, shard: Shard) -> torch.Tensor:
        return torch.randn(BATCH // shard.count, WIDTH, generator=torch_generator(1, step, shard.index))

    def loss(self, name: str, batch: torch.Tensor, step: int):
        self.modules["count"].passes += 1
        if name == "judge":
            return (None, {}) if step < 2 else (self.modules["judge"](batch).mean(), {})
        assert self.modules["model"].training
        return self.modules["model"](batch).mean(), {}

    def evaluate(self):
        return {}


def test_bytes_and_operations_by_hand():
    found = trial.try_example(TwoNetworks(), BATCH, step=0)
    assert found.flops == 3 * (2 * WIDTH * HIDDEN + 2 * HIDDEN * WIDTH)
    kept = WIDTH + 4 * HIDDEN  # input; after ReLU, the mask of dropout (and its product), the input of the second
    assert 4 * (WIDTH + 2 * HIDDEN) <= found.kept_bytes <= 4 * kept
    judged = trial.try_example(TwoNetworks(), BATCH, step=2)
    assert judged.flops == found.flops + 3 * 2 * WIDTH
    assert judged.kept_bytes == found.kept_bytes  # one loss after the other: the larger counts


def test_the_task_is_as_before():
    task = TwoNetworks()
    task.modules["model"].eval()
    weights = {name: value.clone() for name, value in task.modules["model"].state_dict().items()}
    state = torch.get_rng_state()
    trial.try_example(task, BATCH, step=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert task.modules["count"].passes == 0
    assert not task.modules["model"].training
    assert all(torch.equal(value, weights[name]) for name, value in task.modules["model"].state_dict().items())
    assert all(parameter.grad is None for module in task.modules.values() for parameter in module.parameters())


def test_nothing_of_the_trial_stays():
    class Watched(TwoNetworks):
        def loss(self, name: str, batch: torch.Tensor, step: int):
            result = self.modules["model"](batch).exp()  # its gradient needs the result itself
            results.append(weakref.ref(result))
            return result.mean(), {}

    results: list[weakref.ref] = []
    gc.disable()
    try:
        trial.try_example(Watched(), BATCH, step=0)
        assert [result() for result in results] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_estimate_counts_what_is_there_at_once(monkeypatch, processes):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    task, one = TwoNetworks(), trial.try_example(TwoNetworks(), BATCH, step=0)

    def estimate(config=CPU, **how):
        return trial.estimate_by_trial(
            task, config, trial.Examples(BATCH, "vectors", **how), lambda fitting: f"at most {fitting}"
        )

    found = estimate()
    assert (found.examples, found.unit, found.flops) == (80, "vectors", 80 * one.flops)
    assert found.parameters == sum(p.numel() for module in task.modules.values() for p in module.parameters())
    assert found.step_bytes == BATCH // processes * one.kept_bytes
    assert estimate(CPU.model_copy(update={"accumulation_steps": 2})).step_bytes == BATCH // processes // 2 * one.kept_bytes
    assert estimate(CPU.model_copy(update={"precision": "bf16"})).step_bytes == BATCH // processes * (one.kept_bytes // 2)
    assert estimate(at_once=2).step_bytes == 2 * one.kept_bytes
    here = BATCH // processes
    assert estimate(pair_bytes=16).step_bytes == here * one.kept_bytes + 16 * here * BATCH
    room = found.state_bytes + 3 * one.kept_bytes
    monkeypatch.setattr(trial, "available_memory", lambda device: int(room / trial.USABLE_SHARE) + 1)
    with pytest.raises(UsageError, match="at most 3"):
        estimate().announce()
