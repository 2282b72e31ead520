"""Unit-length codes chosen by cosine, best with few dimensions (ViT-VQGAN, arXiv:2110.04627; LlamaGen uses 8)."""

from __future__ import annotations

from vqgan.config import VQConfig, checked
from vqgan.quantizers.library import LibraryOptions, LibraryQuantizer


def build(config: VQConfig) -> LibraryQuantizer:
    """Moving-average quantizer on the unit sphere."""
    options = checked(LibraryOptions, config.quantizer_options, "quantizer_options of 'cosine'")
    return LibraryQuantizer(config, options, cosine=True)
