"""Precision: what "auto" means on each device, and that autocast does what it says."""

from __future__ import annotations

import pytest
import torch

from cm3.train.precision import autocast, autocast_dtype


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", None),
        ("auto", "cuda", torch.bfloat16),
        ("fp32", "cuda", None),
        ("bf16", "cpu", torch.bfloat16),
    ],
)
def test_dtype_by_device(precision, device, expected):
    assert autocast_dtype(precision, torch.device(device)) is expected


@pytest.mark.parametrize(("dtype", "expected"), [(None, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_autocast_changes_the_result_type(dtype, expected):
    with autocast(dtype, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is expected
