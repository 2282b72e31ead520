"""Rates: tokens, operations and their share of the peak."""

import pytest
import torch

from cm3.train.rates import peak_flops, rates


def test_rates_by_hand():
    assert rates(1000, 2.0, None, None) == {"tokens_per_s": 500.0}
    figures = rates(1000, 2.0, 4e9, 10e12)
    assert figures == {"tokens_per_s": 500.0, "model_tflops_per_s": 2.0, "mfu": 0.2}
    assert "mfu" not in rates(1000, 2.0, 4e9, None)


@pytest.mark.parametrize(("name", "tflops"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("Other", None)])
def test_peaks_by_name(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), None) == (None if tflops is None else tflops * 1e12)
    assert peak_flops(torch.device("cpu"), None) is None
    assert peak_flops(torch.device("cpu"), 0.5) == 0.5e12
