"""Tiny tasks with everything that makes resuming hard (dropout, buffers, an adversary), and a child process by fork."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cm3.core.artefact import hash_file
from cm3.core.seeding import torch_generator
from cm3.train.config import TrainConfig
from cm3.train.loop import train
from cm3.train.optimizers import split_decay
from cm3.train.task import Shard


class TinyTask:
    """Denoises random vectors with a network that has dropout and batch statistics; records what it was asked for."""

    def __init__(self, hook: Callable[[int], None] = lambda step: None) -> None:
        generator = torch_generator(7, "tiny")
        net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.GELU(), nn.Linear(12, 6))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(std=0.3, generator=generator)
        self.modules: dict[str, nn.Module] = {"model": net}
        self.hook, self.calls, self.evaluations = hook, [], 0

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        return {"model": split_decay(self.modules["model"].named_parameters())}

    def batch(self, step: int, shard: Shard) -> torch.Tensor:
        self.calls.append((step, shard.index, shard.count))
        if shard.index == 0:
            self.hook(step)
        return torch.randn(8 // shard.count, 6, generator=torch_generator(7, step, shard.index))

    def loss(self, name: str, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, dict[str, Any]]:
        loss = (self.modules["model"](batch) - batch).square().mean()
        return loss, {"mse": loss, "tokens": len(batch)}

    def evaluate(self) -> dict[str, float]:
        self.evaluations += 1
        batch = torch.randn(8, 6, generator=torch_generator(7, "held-out"))
        return {"mse": float((self.modules["model"](batch) - batch).square().mean())}


class AdversarialTask(TinyTask):
    """A second network with a loss and an optimizer of its own, which starts at step 2."""

    def __init__(self, hook: Callable[[int], None] = lambda step: None) -> None:
        super().__init__(hook)
        judge = nn.Linear(6, 1)
        with torch.no_grad():
            for parameter in judge.parameters():
                parameter.normal_(generator=torch_generator(7, "judge"))
        self.modules["judge"] = judge

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        judge = [{"params": list(self.modules["judge"].parameters()), "lr": 3e-3}]
        return super().parameter_groups() | {"judge": judge}

    def loss(self, name: str, batch: torch.Tensor, step: int) -> tuple[Any, dict[str, Any]]:
        model, judge = self.modules["model"], self.modules["judge"]
        if name == "model":
            return (model(batch) - batch).square().mean() - 0.1 * judge(model(batch)).mean(), {}
        if step < 2:
            return None, {}
        return judge(model(batch)).mean() - judge(batch).mean(), {}


@pytest.fixture
def tiny_task() -> type[TinyTask]:
    return TinyTask


@pytest.fixture
def adversarial_task() -> type[AdversarialTask]:
    return AdversarialTask


@pytest.fixture
def settings() -> Callable[..., TrainConfig]:
    """A configuration for a short run; keyword arguments change it."""

    def make(**changes: Any) -> TrainConfig:
        values = {"steps": 8, "device": "cpu", "log_every": 2, "checkpoint_every": 3, "ema_decay": 0.9, "tensorboard": False}
        warmup = min(2, changes.get("steps", 8) - 1)
        return TrainConfig(**(values | {"learning_rate": 1e-2, "warmup_steps": warmup} | changes))

    return make


@pytest.fixture
def state_hashes() -> Callable[[Path, int], dict[str, str]]:
    """File → SHA-256 of the tensors of one checkpoint."""

    def hashes(run_dir: Path, step: int) -> dict[str, str]:
        folder = run_dir / "checkpoints" / f"step-{step:08d}"
        return {file.name: hash_file(file) for file in sorted(folder.glob("*.safetensors"))}

    return hashes


@pytest.fixture
def random_state() -> Callable[[], tuple[bytes, bytes, str]]:
    """The states of the three global generators."""

    def read() -> tuple[bytes, bytes, str]:
        return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), repr(random.getstate())  # noqa: NPY002

    return read


@pytest.fixture
def train_quietly(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`train` without a progress line."""
    monkeypatch.setenv("CM3_PROGRESS", "off")
    return train
