"""Optimizers: groups by decay, Newton-Schulz against singular value decomposition, Muon against torch's, layouts and errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cm3.core.errors import UsageError
from cm3.core.seeding import torch_generator
from cm3.train.config import TrainConfig
from cm3.train.optimizers import Muon, NamedOptimizer, orthogonalize, split_decay


class Network(nn.Module):
    """One parameter of every kind that `split_decay` tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.attention_heads = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 5, bias=False)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def names_of(groups, network):
    names = {parameter: name for name, parameter in network.named_parameters()}
    return [sorted(names[parameter] for parameter in group["params"]) for group in groups]


def test_split_decay_tells_matrices_others_and_vectors_apart():
    network = Network()
    groups = split_decay(network.named_parameters())
    assert names_of(groups, network) == [
        ["attention_heads.weight"],
        ["conv.weight", "embed_tokens.weight", "lm_head.weight"],
        ["attention_heads.bias", "conv.bias", "norm.bias", "norm.weight"],
    ]
    assert [group.get("hidden", False) for group in groups] == [True, False, False]
    assert [group.get("weight_decay") for group in groups] == [None, None, 0.0]
    everything = split_decay(network.named_parameters(), hidden=lambda name, parameter: False)
    assert len(everything) == 2


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_orthogonalize_maps_singular_values_by_the_quintic(shape):
    """Independent reference: the same polynomial on the singular values of a float64 decomposition."""
    matrices = torch.randn(3, *shape, generator=torch_generator(0, str(shape)))
    matrices[1] *= 100
    for matrix, made in zip(matrices.double(), orthogonalize(matrices).double(), strict=True):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        s = s / s.square().sum().sqrt()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        assert torch.allclose(made, u @ torch.diag(s) @ vh, atol=2e-4)


def test_muon_updates_matrices_of_one_shape_as_if_each_were_alone(monkeypatch):
    shapes = [(8, 4), (8, 4), (4, 8), (8, 4), (6, 6)]
    monkeypatch.setattr("cm3.train.optimizers._TOGETHER", 64)  # two of a kind at once
    together = [nn.Parameter(torch.randn(*shape, generator=torch_generator(3, index))) for index, shape in enumerate(shapes)]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in together]
    optimizers = [Muon([{"params": group}], lr=0.02, weight_decay=0.1) for group in (together, *([p] for p in alone))]
    for step in range(3):
        for index, (one, other) in enumerate(zip(together, alone, strict=True)):
            one.grad = torch.randn(one.shape, generator=torch_generator(4, step, index))
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_muon_agrees_with_torch_up_to_its_bf16():
    start = torch.randn(16, 8, generator=torch_generator(1))
    mine, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([{"params": [mine]}], lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        mine.grad = torch.randn(16, 8, generator=torch_generator(2, step))
        theirs.grad = mine.grad.clone()
        ours.step()
        reference.step()
    moved = (start - theirs).norm()
    assert (mine - theirs).norm() < 0.03 * moved
    assert moved > 0.1


def test_muon_takes_matrices_only():
    with pytest.raises(UsageError, match=r"shape \(3,\)"):
        Muon([{"params": [nn.Parameter(torch.zeros(3))]}], lr=0.1, weight_decay=0.0)


def test_named_optimizer_sends_groups_where_they_belong():
    network = Network()
    groups = split_decay(network.named_parameters())
    muon = NamedOptimizer("model", groups, TrainConfig(optimizer="muon"))
    assert names_of(muon.optimizers["muon"].param_groups, network) == [["attention_heads.weight"]]
    assert [group["weight_decay"] for group in muon.optimizers["adamw"].param_groups] == [0.1, 0.0]
    assert list(NamedOptimizer("model", groups, TrainConfig()).optimizers) == ["adamw"]
    assert "hidden" in groups[0]  # the task's own groups are left as they were


def test_learning_rates_of_groups_scale_together():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = NamedOptimizer("model", [{"params": [a], "lr": 0.5}, {"params": [b]}], TrainConfig(learning_rate=0.1))
    optimizer.set_learning_rate(0.5)
    optimizer.set_learning_rate(0.2)
    assert [group["lr"] for group in optimizer.optimizers["adamw"].param_groups] == [0.1, pytest.approx(0.02)]


def test_frozen_parameters_are_left_out_and_nothing_to_train_is_an_error():
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UsageError, match="'model' has no parameter that requires a gradient"):
        NamedOptimizer("model", [{"params": list(frozen.parameters())}], TrainConfig())
    bias = nn.Parameter(torch.zeros(2))
    optimizer = NamedOptimizer("model", [{"params": [*frozen.parameters(), bias]}], TrainConfig())
    assert optimizer.parameters == [bias]
