"""What every estimate rests on: the state of an optimizer, the measured machine, the line and the refusal."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cm3.core.errors import UsageError
from cm3.train.config import TrainConfig
from cm3.train.estimate import RunEstimate, matrix_speed, state_bytes

ESTIMATE = RunEstimate(
    parameters=2_500_000,
    state_bytes=40 << 20,
    step_bytes=2 << 30,
    available_bytes=3 << 30,
    examples=25_600,
    unit="pictures",
    flops=3e12,
    seconds=90.0,
    remedy=lambda: "set less",
)


def test_says_what_is_needed_and_refuses_what_does_not_fit(capsys, monkeypatch):
    monkeypatch.delenv("CM3_PROGRESS", raising=False)
    ESTIMATE.announce()
    needed = "about 2.0 GiB of 3.0 GiB per process, roughly 2 min (3.0e+12 operations)"
    assert capsys.readouterr().err == f"estimate: 2.5M parameters, 25,600 pictures, {needed}\n"
    refused = r"about 2\.0 GiB per process \(40 MiB .*, 2\.0 GiB for a step\), 2\.0 GiB are free; set less"
    with pytest.raises(UsageError, match=refused):
        dataclasses.replace(ESTIMATE, available_bytes=2 << 30).announce()
    assert capsys.readouterr().err == ""


def test_state_by_hand():
    plain = TrainConfig()
    assert state_bytes(plain, 1, weights=100, trained=60) == 4 * (100 + 60 + 2 * 60)
    assert state_bytes(plain, 2, weights=100, trained=60) == 4 * (100 + 60 + 2 * 60) + 4 * 60
    averaged = TrainConfig(ema_decay=0.9)
    assert state_bytes(averaged, 1, weights=100, trained=60, averaged=50) == 4 * (100 + 60 + 2 * 60 + 50)
    muon = TrainConfig(optimizer="muon")
    assert state_bytes(muon, 1, weights=100, trained=60, hidden=40) == 4 * (100 + 60 + 2 * 60 - 40)
    copied = TrainConfig(async_save=True)
    assert state_bytes(copied, 1, weights=100, trained=60) == 4 * (2 * (100 + 2 * 60) + 60)
    spread = TrainConfig(sharding="full")
    assert state_bytes(spread, 4, weights=100, trained=60, whole=10) == 100 + 60 + 2 * 60 + 4 * 2 * 10


def test_the_machine_is_measured():
    assert 1e7 < matrix_speed(torch.device("cpu"), None) < 1e15
