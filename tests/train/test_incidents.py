"""A NaN or a spike stops before the update, the weights stay, and a file says which batch it was; the step comes out again."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from cm3.core.errors import ArtefactError, LossSpikeError, NonFiniteError, UsageError
from cm3.train.incidents import batch_digest, read_incident
from cm3.train.replay import replay


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


def poison_weight(task):
    with torch.no_grad():
        task.modules["model"][0].weight[1, 2] = math.nan


def poison_gradient(task):
    task.modules["model"][4].bias.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), math.inf))


@pytest.mark.parametrize("poison", [poison_weight, poison_gradient, None])
def test_the_step_is_reproduced_from_the_checkpoint_before(
    poison, tiny_task, poisoned_task, tmp_path, settings, train_quietly, random_state
):
    """Of one bad weight, gradient or input: nothing is updated, and the replay meets the same batch, draws and numbers."""
    config = settings(accumulation_steps=2, eval_every=1)

    class Poisoned(poisoned_task if poison is None else tiny_task):
        def batch(self, step, shard):
            if step == 4 and poison is not None and shard.index == 1:
                poison(self)
                self.before = [parameter.detach().clone() for parameter in self.modules["model"].parameters()]
            return super().batch(step, shard)

        def document_names(self, step, shard):
            return [[f"{step}-{shard.index}"]]

    def content():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "run.lock"}

    task, again = Poisoned(), Poisoned()
    with pytest.raises(NonFiniteError):
        train_quietly(task, config, tmp_path)
    (file,) = tmp_path.glob("nonfinite-*.json")
    recorded, drawn, before = read_incident(file), random_state(), content()
    for parameter, old in zip(task.modules["model"].parameters(), task.before):
        assert torch.equal(parameter.nan_to_num(), old.nan_to_num())
    assert [batch.documents for batch in recorded.batches] == [[[f"{recorded.step}-0"]], [[f"{recorded.step}-1"]]]
    replayed = replay(again, config, tmp_path, file)
    assert replayed.reproduced
    assert "nan" in (str(replayed.loss), str(replayed.gradient_norm)) or math.isinf(replayed.gradient_norm)
    assert replayed.checkpoint == tmp_path / "checkpoints" / "step-00000003"
    assert again.calls[0][0] == 3
    assert random_state() == drawn
    assert content() == before
    healthy = replay(tiny_task(), config, tmp_path, file)
    assert not healthy.reproduced
    assert math.isfinite(healthy.loss)
    assert healthy.same_batches is (poison is not None)


def test_a_replay_needs_the_settings_of_its_run(poisoned_task, tmp_path, settings, train_quietly):
    with pytest.raises(NonFiniteError):
        train_quietly(poisoned_task(), settings(), tmp_path)
    file = tmp_path / "nonfinite-step-00000003.json"
    with pytest.raises(UsageError, match=r"train.seed=0, this one has 1"):
        replay(poisoned_task(), settings(seed=1), tmp_path, file)
    with pytest.raises(UsageError, match="1 micro-batches per step .* this one has 2"):
        replay(poisoned_task(), settings(accumulation_steps=2), tmp_path, file)
    with pytest.raises(ArtefactError, match="does not describe a step"):
        replay(poisoned_task(), settings(), tmp_path, tmp_path / "checkpoints" / "step-00000003" / "state.json")


def spiking(tiny_task, *steps):
    """A task whose loss is a hundred times as high in `steps`, and hardly changes in the others."""

    class Spiking(tiny_task):
        def loss(self, name, batch, step):
            loss, metrics = super().loss(name, batch, step)
            if step in steps:
                self.before = [parameter.detach().clone() for parameter in self.modules["model"].parameters()]
            return (loss * 100 if step in steps else loss), metrics

    return Spiking


@pytest.mark.parametrize("on_spike", ["warn", "skip", "ignore"])
def test_spikes_are_told_of_or_skipped(on_spike, tiny_task, tmp_path, settings, train_quietly, state_hashes):
    config = settings(steps=74, on_spike=on_spike, checkpoint_every=71, keep_checkpoints=9)
    task = spiking(tiny_task, 70)()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        train_quietly(task, config, tmp_path / "run")
    words = {"warn": ["updated from all the same"], "skip": ["not updated from"], "ignore": []}[on_spike]
    assert [word in str(entry.message) for entry, word in zip(told, words, strict=True)] == [True] * len(words)
    assert (tmp_path / "run" / "spike-step-00000070.json").exists() is (on_spike != "ignore")
    after = load_file(tmp_path / "run" / "checkpoints" / "step-00000071" / "module-model.safetensors")
    assert torch.equal(after["0.weight"], task.before[0]) is (on_spike == "skip")
    if on_spike == "skip":
        file = tmp_path / "run" / "spike-step-00000070.json"
        assert replay(spiking(tiny_task, 70)(), config, tmp_path / "run", file).reproduced


def test_the_fourth_spike_in_a_row_ends_the_run_also_after_resuming(tiny_task, tmp_path, settings, train_quietly):
    config = settings(steps=90, on_spike="skip", checkpoint_every=72)
    with pytest.warns(UserWarning, match="is a spike"), pytest.raises(LossSpikeError, match=r"step 73 is a spike .* nothing was"):
        train_quietly(spiking(tiny_task, *range(70, 80))(), config, tmp_path)
    again = spiking(tiny_task, *range(70, 80))()
    with pytest.warns(UserWarning, match="step 72 is a spike"), pytest.raises(LossSpikeError, match="step 73"):
        train_quietly(again, config, tmp_path)  # the window and the two that were skipped are part of the state
    assert [call[0] for call in again.calls] == [72, 73]


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
