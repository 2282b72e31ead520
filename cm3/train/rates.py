"""How fast a run is: tokens per second, model FLOP/s, and their share of what the devices can do (MFU).

MFU as in PaLM (Chowdhery et al. 2022, appendix B): the operations that the model needs for the tokens seen, over time and
peak. Recomputation and padding do not count as work. Peaks are dense bf16 figures of the makers' data sheets.
"""

from __future__ import annotations

from types import MappingProxyType

import torch

PEAK_TFLOPS = MappingProxyType({"H100 PCIe": 756.0, "H100": 989.0, "H200": 989.0, "A100": 312.0})


def peak_flops(device: torch.device, configured_tflops: float | None) -> float | None:
    """Operations per second of one device at most: as configured, by the name of the GPU, or None when nobody knows."""
    if configured_tflops is not None:
        return configured_tflops * 1e12
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for known, peak in PEAK_TFLOPS.items() if known in name), None)


def rates(tokens: float, seconds: float, flops_per_token: float | None, peak: float | None) -> dict[str, float]:
    """Figures of one record: `tokens_per_s`; with `flops_per_token` also `model_tflops_per_s`, and with `peak` (of all devices
    together) `mfu` in [0, 1]."""
    figures = {"tokens_per_s": tokens / seconds}
    if flops_per_token is not None:
        speed = tokens * flops_per_token / seconds
        figures["model_tflops_per_s"] = speed / 1e12
        if peak is not None:
            figures["mfu"] = speed / peak
    return figures
