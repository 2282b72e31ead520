"""Codebook as a moving average of the latents that chose each code, with restart of codes that nothing chooses.

On `vector_quantize_pytorch.VectorQuantize`; `vqgan.quantizers.library` joins it to our protocol. VQ-VAE-2, arXiv:1906.00446.
"""

from __future__ import annotations

from vqgan.config import VQConfig, checked
from vqgan.quantizers.library import LibraryOptions, LibraryQuantizer


def build(config: VQConfig) -> LibraryQuantizer:
    """Moving-average quantizer with straight-through gradient."""
    options = checked(LibraryOptions, config.quantizer_options, "quantizer_options of 'ema'")
    return LibraryQuantizer(config, options)
