"""The loop: bit-exact resume at every step, stopping, made-up evaluations, several optimizers, what is logged."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest
import torch
import torch._dynamo
from PIL import Image
from torch import nn

from cm3.core.errors import Preempted
from cm3.core.seeding import torch_generator
from cm3.train.metrics import read_records


def stop_at(last_step, number=signal.SIGTERM):
    """A hook that asks the run to stop during `last_step`."""
    return lambda step: os.kill(os.getpid(), number) if step == last_step else None


VARIANTS = {
    "adamw": ("tiny_task", {}),
    "muon": ("tiny_task", {"optimizer": "muon", "ema_decay": None, "schedule": "wsd", "checkpoint_every": 0}),
    "accumulation": ("tiny_task", {"accumulation_steps": 2, "clip_norm": 0.1, "checkpoint_every": 0}),
    "adversarial": ("adversarial_task", {"eval_every": 3}),
    "bf16": ("tiny_task", {"precision": "bf16"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_bit_exact_at_every_step(variant, request, tmp_path, settings, train_quietly, state_hashes, random_state):
    fixture, changes = VARIANTS[variant]
    task, config = request.getfixturevalue(fixture), settings(**changes)
    whole = train_quietly(task(), config, tmp_path / "whole")
    expected, expected_random = state_hashes(tmp_path / "whole", 8), random_state()
    assert len(expected) == len(task().modules) + len(task().parameter_groups()) + (config.ema_decay is not None)
    for k in range(1, 9):
        run_dir = tmp_path / f"stopped-{k}"
        with pytest.raises(Preempted):
            train_quietly(task(stop_at(k - 1)), config, run_dir)
        torch.manual_seed(k)  # whatever another program did meanwhile
        resumed = train_quietly(task(), config, run_dir)
        assert state_hashes(run_dir, 8) == expected, k
        if k < 8:
            assert random_state() == expected_random, k
        assert [r for r in resumed.history if r["kind"] == "eval"][-1]["mse"] == whole.history[-1]["mse"]


def test_every_batch_is_asked_for_once_and_in_order(tmp_path, settings, train_quietly, tiny_task):
    first, second = tiny_task(stop_at(4)), tiny_task()
    config = settings(accumulation_steps=2)
    with pytest.raises(Preempted):
        train_quietly(first, config, tmp_path)
    train_quietly(second, config, tmp_path)
    assert first.calls + second.calls == [(step, index, 2) for step in range(8) for index in range(2)]


def test_evaluation_and_logging_do_not_change_the_training(tmp_path, settings, train_quietly, state_hashes, tiny_task):
    class DrawingTask(tiny_task):
        def evaluate(self):
            torch.rand(5)
            return super().evaluate()

    train_quietly(tiny_task(), settings(), tmp_path / "seldom")
    train_quietly(DrawingTask(), settings(eval_every=1, log_every=1, checkpoint_every=1), tmp_path / "often")
    assert state_hashes(tmp_path / "seldom", 8) == state_hashes(tmp_path / "often", 8)


def test_a_finished_run_returns_at_once(tmp_path, settings, train_quietly, tiny_task):
    done = train_quietly(tiny_task(), settings(), tmp_path)
    again = tiny_task()
    result = train_quietly(again, settings(), tmp_path)
    assert again.calls == []
    assert again.evaluations == 0
    assert (result.step, result.history, result.seconds) == (8, done.history, done.seconds)
    assert all(torch.equal(result.ema["model"][name], value) for name, value in done.ema["model"].items())


def test_sigint_is_a_keyboard_interrupt_after_saving(tmp_path, settings, train_quietly, tiny_task):
    with pytest.raises(KeyboardInterrupt):
        train_quietly(tiny_task(stop_at(4, signal.SIGINT)), settings(), tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000005").is_dir()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_stopping_does_not_wait_for_an_evaluation_which_is_made_up_later(tmp_path, settings, train_quietly, tiny_task):
    class SlowEvaluation(tiny_task):
        def evaluate(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    started = time.monotonic()
    with pytest.raises(Preempted, match="step 4"):
        train_quietly(SlowEvaluation(), settings(eval_every=4), tmp_path)
    assert time.monotonic() - started < 10
    result = train_quietly(tiny_task(), settings(eval_every=4), tmp_path)
    assert [record["step"] for record in result.history if record["kind"] == "eval"] == [4, 8]


def test_a_second_signal_kills_at_once_and_leaves_a_good_checkpoint(tmp_path, settings, train_quietly, tiny_task, in_child):
    def stuck(step):
        if step == 5:
            (tmp_path / "stuck").touch()
            for _ in range(2000):
                time.sleep(0.01)

    pid = in_child(lambda: train_quietly(tiny_task(stuck), settings(), tmp_path), wait=False)
    deadline = time.monotonic() + 20
    while not (tmp_path / "stuck").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)  # the first one waits for the end of the step
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    resumed = tiny_task()
    assert train_quietly(resumed, settings(), tmp_path).step == 8
    assert resumed.calls[0][0] == 3


def test_training_and_evaluation_see_the_right_modes_and_weights(tmp_path, settings, train_quietly, tiny_task):
    class Watching(tiny_task):
        def __init__(self):
            super().__init__()
            self.modules["frozen"] = torch.nn.Dropout().train()
            self.modules["model"].eval()
            self.seen = []

        def loss(self, name, batch, step):
            self.seen.append(("train", self.modules["model"][2].training, self.modules["frozen"].training))
            return super().loss(name, batch, step)

        def evaluate(self):
            assert not torch.is_grad_enabled()
            self.weights = self.modules["model"][0].weight.detach().clone()
            self.seen.append(("eval", self.modules["model"][2].training, self.modules["frozen"].training))
            return {}

    task = Watching()
    result = train_quietly(task, settings(), tmp_path)
    assert task.seen == [("train", True, False)] * 8 + [("eval", False, False)]
    assert not task.modules["model"].training  # as it came
    assert task.modules["frozen"].training
    assert torch.equal(task.weights, result.ema["model"]["0.weight"])
    assert not torch.equal(task.weights, task.modules["model"][0].weight)


def test_history_holds_means_rates_and_evaluations(tmp_path, settings, train_quietly, tiny_task):
    losses = []

    class Noting(tiny_task):
        def loss(self, name, batch, step):
            loss, metrics = super().loss(name, batch, step)
            losses.append(loss.item())
            return loss, metrics

    result = train_quietly(Noting(), settings(log_every=4, schedule="constant"), tmp_path)
    first, second, last = result.history
    assert (first["kind"], first["step"], second["step"], last["kind"], last["step"]) == ("train", 4, 8, "eval", 8)
    assert first["loss"] == pytest.approx(sum(losses[:4]) / 4, rel=1e-6)
    assert second["mse"] == pytest.approx(sum(losses[4:]) / 4, rel=1e-6)
    assert second["learning_rate"] == pytest.approx(1e-2)
    assert second["tokens_per_s"] == pytest.approx(32 / (second["seconds"] - first["seconds"]), rel=0.2)
    assert read_records(tmp_path / "metrics.jsonl") == result.history
    assert result.seconds >= second["seconds"] - 1e-3


def test_pictures_are_saved_beside_the_evaluation(tmp_path, settings, train_quietly, tiny_task):
    class Drawing(tiny_task):
        def pictures(self):
            return {"grid": Image.new("RGB", (2, 2), "red")}

    train_quietly(Drawing(), settings(steps=2, eval_every=1), tmp_path)
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == ["step-00000001-grid.png", "step-00000002-grid.png"]


def test_the_second_optimizer_moves_only_its_own_parameters(tmp_path, settings, train_quietly, adversarial_task):
    class Checking(adversarial_task):
        def loss(self, name, batch, step):
            if name == "judge":
                assert all(parameter.grad is None for parameter in self.modules["model"].parameters())
            return super().loss(name, batch, step)

    task = Checking()
    before = task.modules["judge"].weight.detach().clone()
    history = train_quietly(task, settings(steps=2, log_every=1), tmp_path / "a").history
    assert torch.equal(task.modules["judge"].weight, before)  # its loss is None in the first two steps
    assert "judge/loss" not in history[0]
    history = train_quietly(Checking(), settings(steps=3, log_every=1), tmp_path / "b").history
    assert {"loss", "judge/loss", "judge/gradient_norm"} <= set(history[2])


def test_tensorboard_events_are_written_when_asked_for(tmp_path, settings, train_quietly, tiny_task):
    pytest.importorskip("tensorboard")
    train_quietly(tiny_task(), settings(steps=2, tensorboard=True), tmp_path)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_bf16_autocast_on_request(tmp_path, settings, train_quietly, tiny_task):
    seen = []

    class Watching(tiny_task):
        def loss(self, name, batch, step):
            seen.append(self.modules["model"][0](batch).dtype)
            return super().loss(name, batch, step)

    train_quietly(Watching(), settings(steps=1, precision="bf16"), tmp_path)
    assert seen == [torch.bfloat16]


@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="compiles with a C++ compiler")
def test_machine_code_of_the_compiler_trains_the_same(tmp_path, settings, train_quietly, tiny_task):
    class Net(nn.Module):
        """A class of its own: a container of torch is called part by part, past the compiler."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.normal_(std=0.3, generator=torch_generator(7, parameter.numel()))

        def forward(self, x):
            return self.down(torch.tanh(self.up(x)))

    class Task(tiny_task):
        def __init__(self) -> None:
            super().__init__()
            self.modules["model"] = Net()

        def evaluate(self):
            return {}

    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    losses = []
    for compiled in (False, True):
        config = settings(steps=2, log_every=1, precision="fp32", compile=compiled)
        history = train_quietly(Task(), config, tmp_path / str(compiled)).history
        losses.append([record["loss"] for record in history if record["kind"] == "train"])
    assert counts["unique_graphs"] > before
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
