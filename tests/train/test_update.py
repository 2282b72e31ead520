"""Accumulated gradients are those of the whole batch, however unevenly it was cut; clipping; nothing moves on bad numbers."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from cm3.core.errors import UsageError
from cm3.core.seeding import torch_generator
from cm3.train.config import TrainConfig
from cm3.train.metrics import Meter
from cm3.train.optimizers import NamedOptimizer
from cm3.train.update import Updater


class WeightedTask:
    """Least squares where every row has a weight; `loss` is the weighted mean of its micro-batch."""

    def __init__(self, give_weight: bool = True) -> None:
        net = nn.Linear(4, 2)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(generator=torch_generator(3, parameter.ndim))
        self.modules, self.give_weight = {"model": net}, give_weight

    def loss(self, name, batch, step):
        rows, weights = batch  # (B, 4), (B,)
        squares = self.modules["model"](rows).square().sum(1)
        loss = (squares * weights).sum() / weights.sum().clamp(min=1e-9)
        return loss, {"weight": weights.sum(), "tokens": len(rows)} if self.give_weight else {}


def updater_for(task):
    optimizer = NamedOptimizer("model", [{"params": list(task.modules["model"].parameters())}], TrainConfig())
    return Updater(task, Accelerator(cpu=True), None, optimizer.parameters, Meter()), optimizer


def data(*sizes):
    generator = torch_generator(5)
    return [(torch.randn(size, 4, generator=generator), torch.rand(size, generator=generator)) for size in sizes]


def normalized_gradients(optimizer, measured):
    return [parameter.grad * measured.scale for parameter in optimizer.parameters]


def test_uneven_micro_batches_give_the_gradient_of_the_whole():
    batches = data(1, 5, 2)
    updater, optimizer = updater_for(WeightedTask())
    parts = updater.accumulate(optimizer, batches, 0, "")
    gradients = normalized_gradients(optimizer, parts)
    whole = (torch.cat([rows for rows, _ in batches]), torch.cat([weights for _, weights in batches]))
    reference, other = updater_for(WeightedTask())
    expected = reference.accumulate(other, [whole], 0, "")
    assert expected.scale == 1.0
    assert parts.loss == pytest.approx(expected.loss, rel=1e-6)
    assert parts.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-6)
    assert all(torch.allclose(a, b.grad, rtol=1e-5) for a, b in zip(gradients, other.parameters))
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert parts.gradient_norm == pytest.approx(norm, rel=1e-6)
    metrics = updater.meter.collect(updater.accelerator)
    assert metrics["loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert metrics["tokens"] == 8
    assert "weight" not in metrics


def test_without_weights_micro_batches_count_equally():
    batches = data(2, 2)
    task = WeightedTask(give_weight=False)
    updater, optimizer = updater_for(task)
    measured = updater.accumulate(optimizer, batches, 0, "")
    assert measured.loss == pytest.approx(sum(task.loss("model", batch, 0)[0].item() for batch in batches) / 2)
    assert measured.scale == pytest.approx(0.5)


def test_a_step_without_any_weight_has_no_gradient():
    updater, optimizer = updater_for(WeightedTask())
    empty = [(torch.randn(2, 4), torch.zeros(2))] * 2
    measured = updater.accumulate(optimizer, empty, 0, "")
    assert (measured.loss, measured.gradient_norm, measured.finite) == (0.0, 0.0, True)
    updater.apply(optimizer, measured, 1.0)
    assert all(torch.isfinite(parameter).all() for parameter in optimizer.parameters)


@pytest.mark.parametrize("clip_norm", [None, 0.01, 1e9])
def test_apply_clips_like_torch(clip_norm, monkeypatch):
    updater, optimizer = updater_for(WeightedTask())
    measured = updater.accumulate(optimizer, data(3, 1), 0, "")
    twins = [nn.Parameter(torch.zeros_like(parameter)) for parameter in optimizer.parameters]
    for twin, gradient in zip(twins, normalized_gradients(optimizer, measured)):
        twin.grad = gradient.clone()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(twins, clip_norm)
    seen = []
    monkeypatch.setattr(optimizer, "step", lambda: seen.extend(parameter.grad.clone() for parameter in optimizer.parameters))
    updater.apply(optimizer, measured, clip_norm)
    assert all(torch.allclose(mine, twin.grad, rtol=2e-4) for mine, twin in zip(seen, twins))  # torch adds 1e-6 to the norm
    assert all(parameter.grad is None for parameter in optimizer.parameters)


def test_only_the_wanted_gradients_are_computed():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)

    class Two:
        modules = {"a": first, "b": second}  # noqa: RUF012

        def loss(self, name, batch, step):
            return second(first(batch)).sum(), {}

    optimizer = NamedOptimizer("a", [{"params": list(first.parameters())}], TrainConfig())
    everything = [*first.parameters(), *second.parameters()]
    measured = Updater(Two(), Accelerator(cpu=True), None, everything, Meter()).accumulate(optimizer, [torch.ones(1, 3)], 0, "")
    assert measured.gradient_norm > 0
    assert first.weight.grad is not None
    assert second.weight.grad is None


def test_what_the_task_left_in_the_gradients_does_not_count():
    updater, optimizer = updater_for(WeightedTask())
    clean = updater.accumulate(optimizer, data(3), 0, "")
    for parameter in optimizer.parameters:
        parameter.grad = torch.full_like(parameter, 100.0)
    assert updater.accumulate(optimizer, data(3), 0, "") == clean


def test_a_loss_that_reaches_no_parameter_is_a_mistake_of_the_task():
    task = WeightedTask()
    stray = nn.Parameter(torch.ones(()))
    task.loss = lambda name, batch, step: (stray * 2, {})
    updater, optimizer = updater_for(task)
    with pytest.raises(UsageError, match="'model' depends on none of its parameters"):
        updater.accumulate(optimizer, data(1), 0, "")


@pytest.mark.parametrize("where", ["batch", "weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_numbers_are_seen(where, value):
    task = WeightedTask()
    batches = data(2)
    target = batches[0][0] if where == "batch" else task.modules["model"].weight.data
    target[0, 0] = value
    updater, optimizer = updater_for(task)
    assert not updater.accumulate(optimizer, batches, 0, "").finite


def test_an_infinite_gradient_under_a_finite_loss_is_seen():
    task = WeightedTask()
    task.loss = lambda name, batch, step: (task.modules["model"].weight.mul(0.0).sqrt().sum(), {})
    updater, optimizer = updater_for(task)
    measured = updater.accumulate(optimizer, data(1), 0, "")
    assert math.isfinite(measured.loss)
    assert not measured.finite
