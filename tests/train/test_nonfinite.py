"""A NaN stops the run before the update, leaves the weights as they were, and a file that says which batch it was."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
import torch

from cm3.core.errors import NonFiniteError
from cm3.train.nonfinite import batch_digest


@pytest.fixture
def poisoned_task(tiny_task):
    """A task whose batch of step 3 holds one NaN; it keeps a copy of its parameters from before that step."""

    class Poisoned(tiny_task):
        def batch(self, step, shard):
            batch = super().batch(step, shard)
            if step == 3 and shard.index == 0:
                batch[1, 2] = math.nan
                self.before = [parameter.detach().clone() for parameter in self.modules["model"].parameters()]
            return batch

    return Poisoned


def test_nothing_is_updated_and_the_replay_file_names_the_batch(poisoned_task, tmp_path, settings, train_quietly):
    task = poisoned_task()
    with pytest.raises(
        NonFiniteError,
        match=r"loss of 'model' is not finite in step 3 .*; nothing was updated, see .*nonfinite-step-00000003.json",
    ):
        train_quietly(task, settings(accumulation_steps=2, seed=11), tmp_path)
    assert all(torch.equal(mine, old) for mine, old in zip(task.modules["model"].parameters(), task.before))
    replay = json.loads((tmp_path / "nonfinite-step-00000003.json").read_text())
    assert (replay["step"], replay["seed"], replay["optimizer"], replay["loss"]) == (3, 11, "model", "nan")
    assert [(entry["index"], entry["finite"]) for entry in replay["batches"]] == [(0, False), (1, True)]
    assert "model/0.weight" in replay["parameters_with_bad_gradients"]
    assert [entry.name for entry in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]  # none of step 4


def test_what_was_updated_before_is_said(adversarial_task, tmp_path, settings, train_quietly):
    class Poisoned(adversarial_task):
        def loss(self, name, batch, step):
            loss, metrics = super().loss(name, batch, step)
            return (loss * math.nan if name == "judge" and step == 3 else loss), metrics

    with pytest.raises(
        NonFiniteError, match=r"'judge' .* 'model' had made the update of this step already, 'judge' has not, see"
    ):
        train_quietly(Poisoned(), settings(), tmp_path)
    assert json.loads((tmp_path / "nonfinite-step-00000003.json").read_text())["updated_before"] == ["model"]


def test_resuming_meets_the_same_batch_again(poisoned_task, tmp_path, settings, train_quietly):
    digests = []
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            train_quietly(poisoned_task(), settings(), tmp_path)
        digests.append(json.loads((tmp_path / "nonfinite-step-00000003.json").read_text())["batches"])
    assert digests[0] == digests[1]


def test_digest_tells_values_shapes_and_types_apart():
    @dataclass
    class Pair:
        tokens: torch.Tensor
        ids: list[str]

    base = Pair(torch.arange(4), ["a"])
    assert batch_digest(base) == batch_digest(Pair(torch.arange(4), ["a"]))
    others = [
        Pair(torch.arange(4) + 1, ["a"]),
        Pair(torch.arange(4), ["b"]),
        Pair(torch.arange(4).reshape(2, 2), ["a"]),
        {"tokens": torch.arange(4, dtype=torch.int32), "ids": ("a",)},
    ]
    assert len({batch_digest(value) for value in [base, *others]}) == 5
