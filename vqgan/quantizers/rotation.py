"""Moving-average codebook whose gradient is rotated from the code vector back to the latent (arXiv:2410.06424)."""

from __future__ import annotations

from vqgan.config import VQConfig, checked
from vqgan.quantizers.library import LibraryOptions, LibraryQuantizer


def build(config: VQConfig) -> LibraryQuantizer:
    """Moving-average quantizer with the rotation trick instead of the straight-through gradient."""
    options = checked(LibraryOptions, config.quantizer_options, "quantizer_options of 'rotation'")
    return LibraryQuantizer(config, options, rotation_trick=True)
