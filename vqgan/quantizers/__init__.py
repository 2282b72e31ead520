"""Quantizers: latents to the nearest of finitely many vectors. Each entry builds a `Quantizer` from a `VQConfig`."""

from cm3.core.registry import Registry

QUANTIZERS = Registry(
    "quantizer",
    {
        "vq": "vqgan.quantizers.vq:build",
        "ema": "vqgan.quantizers.ema:build",
        "cosine": "vqgan.quantizers.cosine:build",
        "rotation": "vqgan.quantizers.rotation:build",
        "fsq": "vqgan.quantizers.fsq:build",
        "lfq": "vqgan.quantizers.lfq:build",
        "ibq": "vqgan.quantizers.ibq:build",
        "gumbel": "vqgan.quantizers.gumbel:build",
    },
)
