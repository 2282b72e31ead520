"""The spike detector: every spike of a hundred times the loss is found, also several in a row, and no clean step."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cm3.core.seeding import numpy_generator
from cm3.train.spikes import MOST_IN_A_ROW, WINDOW, SpikeDetector

STEPS = 10_000


def losses(seed: int) -> np.ndarray:
    """A run: a steep fall, a long slow one and the drop of the last fifth, with the noise of batches (STEPS,)."""
    steps = np.arange(STEPS)
    trend = 2.0 + 6.0 * np.exp(-steps / 300) + 1.5 * np.exp(-steps / 4000) - 0.3 * np.clip(steps / STEPS - 0.8, 0, None)
    return trend * (1 + 0.03 * numpy_generator(seed, "noise").standard_normal(STEPS))


def test_clean_steps_raise_no_alarm_and_spikes_do():
    """Chance of a false alarm in 10,000 clean steps: below 1e-3 (six deviations, estimated from 64 losses at the least)."""
    clean, detector = losses(0), SpikeDetector()
    assert [step for step, loss in enumerate(clean) if detector.exceeded(loss) is not None] == []
    spikes = {start + offset for start in range(100, STEPS, 97) for offset in range(1 + start % MOST_IN_A_ROW)}
    detector = SpikeDetector()
    found = {step for step, loss in enumerate(clean) if detector.exceeded(loss * (100 if step in spikes else 1)) is not None}
    assert found == spikes


def test_a_new_level_becomes_the_usual_one():
    detector, rng = SpikeDetector(), numpy_generator(0)
    alarms = [detector.exceeded((1 if step < 200 else 10) + 0.01 * rng.standard_normal()) is not None for step in range(400)]
    assert alarms[200 : 200 + MOST_IN_A_ROW + 1] == [True] * (MOST_IN_A_ROW + 1)
    assert sum(alarms) < 20


def test_a_loss_that_does_not_move_is_not_judged_by_its_rounding():
    detector = SpikeDetector()
    assert [detector.exceeded(3.0 + step % 2 * 1e-6) for step in range(2 * WINDOW)] == [None] * 2 * WINDOW
    assert detector.exceeded(3.1) == pytest.approx(3.018, abs=1e-3)


def test_it_goes_on_from_its_record_to_the_bit():
    clean, whole, stopped = losses(5)[:600] * (1 + 99 * (np.arange(600) % 150 == 149)), SpikeDetector(), SpikeDetector()
    expected = [whole.exceeded(loss) for loss in clean.tolist()]
    for step, loss in enumerate(clean.tolist()):
        resumed = SpikeDetector()
        resumed.load(json.loads(json.dumps(stopped.record())))
        assert resumed.exceeded(loss) == stopped.exceeded(loss) == expected[step]
