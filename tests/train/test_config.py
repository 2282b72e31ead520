"""TrainConfig: read from a run file, with typos and impossible values refused in one sentence; imports no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cm3.core.errors import UsageError
from cm3.core.runfile import load_run
from cm3.train.config import TrainConfig


def test_a_run_file_with_overrides(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("steps = 50\nlearning_rate = 3e-4\nbetas = [0.9, 0.99]\nema_decay = 0.99\n")
    config = load_run(TrainConfig, path, ["steps=60", "schedule=wsd"])
    assert (config.steps, config.learning_rate, config.betas, config.schedule) == (60, 3e-4, (0.9, 0.99), "wsd")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("leaning_rate=1", "learning_rate"),
        (f"seed={2**63}", "less than 9223372036854775808"),
        ("steps=0", "greater than or equal to 1"),
        ("schedule=linear", "'constant', 'cosine', 'wsd' or 'polynomial'"),
        ("betas=[0.9,1.0]", "betas must lie in"),
        ("warmup_steps=1000", "warmup_steps=1000 don't end within steps=1000; set fewer warmup_steps, or more steps"),
        ("power=2", "power=2.0 would change nothing beside schedule=cosine; leave out one or the other"),
        ("decay_fraction=0.5", "decay_fraction=0.5 would change nothing beside schedule=cosine"),
        ("schedule=constant min_lr_ratio=0.1", "min_lr_ratio=0.1 would change nothing beside schedule=constant"),
        ("on_spike=ignore spike_sigma=4", "spike_sigma=4.0 would change nothing beside on_spike=ignore"),
        ("ema_decay=1.0", "less than 1"),
        ("clip_norm=-1", "greater than 0"),
        ("clip_norm=inf", "finite number"),
        ("learning_rate=inf", "finite number"),
        ("betas=[nan,0.9]", "finite number"),
        ("steps=true", "key 'steps': expected a number, got true"),
        ("ema_decay=false", "key 'ema_decay': expected a number, got false"),
    ],
)
def test_mistakes_are_explained(overrides, message):
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        load_run(TrainConfig, None, overrides.split())


def test_reading_a_configuration_does_not_import_torch():
    code = "import sys, cm3.train.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
