"""Metrics: weighted means, files that survive cuts and restarts, figures that JSON cannot hold."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from cm3.core.errors import UsageError
from cm3.train.metrics import Meter, RunLog, read_records
from cm3.train.task import Ratio


def test_meter_averages_by_weight_and_sums_tokens():
    meter, accelerator = Meter(), Accelerator(cpu=True)
    meter.add({"loss": torch.tensor(1.0), "share": 0.5, "tokens": 3}, weight=torch.tensor(1.0))
    meter.add({"loss": torch.tensor(3.0), "tokens": 4}, weight=3.0)
    meter.add({"loss": torch.tensor(8, dtype=torch.int64)}, prefix="judge/")
    assert meter.collect(accelerator) == {"loss": 2.5, "share": 0.5, "tokens": 7.0, "judge/loss": 8.0}
    assert meter.collect(accelerator) == {}


def test_a_ratio_is_the_mean_over_what_it_counts():
    meter, accelerator = Meter(), Accelerator(cpu=True)
    meter.add({"bits": Ratio(torch.tensor(6.0), torch.tensor(2)), "none": Ratio(0.0, 0)}, weight=100.0)
    meter.add({"bits": Ratio(1.0, 5), "none": Ratio(torch.tensor(0.0), 0.0)}, weight=1.0)
    figures = meter.collect(accelerator)
    assert figures["bits"] == 1.0
    assert math.isnan(figures["none"])


def test_weights_and_biases_gets_the_figures_of_every_record(tmp_path, monkeypatch):
    """A stand-in for the package, which is not installed here."""
    started, logged, finished = [], [], []
    run = SimpleNamespace(log=lambda figures, step: logged.append((step, figures)), finish=lambda: finished.append(True))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: started.append(options) or run))
    for _ in range(2):
        with RunLog(tmp_path, step=0, main=True, tensorboard=False, wandb="project") as log:
            log.write("train", 1, 0.5, {"loss": 2.0, "bad": math.nan})
    assert logged == [(1, {"train/loss": 2.0})] * 2
    assert [options["project"] for options in started] == ["project"] * 2
    assert started[0]["id"] == started[1]["id"]  # a restart goes on in the same place
    assert finished == [True, True]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="wandb is not installed"):
        RunLog(tmp_path, step=0, main=True, tensorboard=False, wandb="project")


def test_meter_keeps_no_graph():
    meter = Meter()
    loss = torch.ones(2, requires_grad=True).sum()
    meter.add({"loss": loss})
    assert all(not value.requires_grad for value in meter._totals["loss"])


def test_records_behind_the_resumed_step_and_cut_lines_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"kind": "train", "step": step, "loss": 1.0}) for step in (2, 4, 6)]
    path.write_text("\n".join(lines) + '\n{"kind": "tra')
    assert [record["step"] for record in read_records(path)] == [2, 4, 6]
    with RunLog(tmp_path, step=4, main=True, tensorboard=False) as log:
        log.write("train", 5, 0.5, {"loss": 0.5})
        assert [record["step"] for record in log.history] == [2, 4, 5]
    assert read_records(path) == log.history


def test_figures_that_are_not_finite_become_null(tmp_path):
    with RunLog(tmp_path, step=0, main=True, tensorboard=False) as log:
        log.write("eval", 1, 0.0, {"accuracy": math.nan, "bits": 2})
    record = {"kind": "eval", "step": 1, "seconds": 0.0, "accuracy": None, "bits": 2.0}
    assert read_records(tmp_path / "metrics.jsonl") == [record]


def test_other_processes_write_nothing(tmp_path):
    with RunLog(tmp_path, step=0, main=False, tensorboard=True) as log:
        log.write("train", 1, 0.0, {"loss": 1.0})
        log.write_pictures(1, {})
    assert len(log.history) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_an_empty_history(tmp_path):
    assert read_records(tmp_path / "none.jsonl") == []


def test_a_metric_without_weight_is_not_a_number():
    meter = Meter()
    meter.add({"loss": 3.0}, weight=0.0)
    assert math.isnan(meter.collect(Accelerator(cpu=True))["loss"])
