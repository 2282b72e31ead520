"""Schedules: known points of every shape, warm-up, and that a factor always lies between its floor and 1."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.train.config import TrainConfig
from cm3.train.schedules import learning_rate_factor

SETTINGS = {"constant": {}, "cosine": {}, "wsd": {"decay_fraction": 0.5}, "polynomial": {"power": 2.0}}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("cosine", [1.0, 0.5, 0.1464466, 0.0061558]),
        ("wsd", [1.0, 1.0, 0.5, 0.1]),
        ("polynomial", [1.0, 0.25, 0.0625, 0.0025]),
    ],
)
def test_known_points(schedule, expected):
    config = TrainConfig(steps=120, warmup_steps=20, schedule=schedule, **SETTINGS[schedule])
    assert [learning_rate_factor(config, step) for step in (20, 70, 95, 115)] == pytest.approx(expected, abs=1e-6)


def test_warmup_rises_linearly_and_is_never_zero():
    config = TrainConfig(steps=100, warmup_steps=4, schedule="constant")
    assert [learning_rate_factor(config, step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("warmup", [0, 5])
def test_the_last_update_is_one_step_before_the_floor(warmup):
    config = TrainConfig(steps=warmup + 10, warmup_steps=warmup, schedule="wsd", decay_fraction=0.5, min_lr_ratio=0.1)
    factors = [learning_rate_factor(config, step) for step in range(warmup, config.steps)]
    assert factors == pytest.approx([1.0] * 6 + [0.82, 0.64, 0.46, 0.28])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    schedule=st.sampled_from(sorted(SETTINGS)),
    decaying=st.integers(1, 50),
    warmup=st.integers(0, 60),
    fraction=st.floats(0, 1),
    floor=st.floats(0, 1),
)
def test_factors_stay_in_range_and_never_rise_after_warmup(schedule, decaying, warmup, fraction, floor):
    steps = warmup + decaying
    given = {"min_lr_ratio": floor} if schedule != "constant" else {}
    given |= {"decay_fraction": fraction} if schedule == "wsd" else SETTINGS[schedule]
    config = TrainConfig(steps=steps, warmup_steps=warmup, schedule=schedule, **given)
    factors = [learning_rate_factor(config, step) for step in range(steps + 3)]
    assert all(0.0 < factor <= 1.0 + 1e-12 or (factor == 0.0 and floor == 0.0) for factor in factors)
    after = factors[warmup:]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))
