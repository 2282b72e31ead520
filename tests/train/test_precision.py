"""Precision: what "auto" means on each device, and that autocast does what it says."""

from __future__ import annotations

import pytest
import torch

from cm3.train import precision as module
from cm3.train.precision import autocast, autocast_dtype, cpu_has_bf16_tiles


@pytest.mark.parametrize(
    ("precision", "device", "tiles", "expected"),
    [
        ("auto", "cpu", False, None),
        ("auto", "cpu", True, torch.bfloat16),
        ("auto", "cuda", False, torch.bfloat16),
        ("fp32", "cuda", True, None),
        ("fp32", "cpu", True, None),
        ("bf16", "cpu", False, torch.bfloat16),
    ],
)
def test_dtype_by_device(monkeypatch, precision, device, tiles, expected):
    monkeypatch.setattr(module, "cpu_has_bf16_tiles", lambda: tiles)
    assert autocast_dtype(precision, torch.device(device)) is expected


@pytest.mark.parametrize(("capabilities", "expected"), [({"amx_bf16": True}, True), ({"avx512_bf16": True}, False), ({}, False)])
def test_tiles_are_what_the_cpu_says(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cpu_has_bf16_tiles() is expected


def test_a_torch_that_cannot_tell_means_no(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert cpu_has_bf16_tiles() is False


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_autocast_changes_the_result_type(dtype, expected):
    with autocast(dtype, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is expected
