"""transformers' `ChameleonVQVAE`: taming's names, encoder and quantizer alone, for models that read pictures and draw none.

Ours to theirs drops the decoder. The other way gives a tokenizer that encodes and cannot decode; Chameleon's own `vqgan.ckpt`,
which is of format "taming", is complete.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vqgan.config import VQConfig
from vqgan.conversion import taming
from vqgan.conversion.checkpoint_format import CheckpointFormat, Tensors
from vqgan.conversion.layout import TamingLimits, require_taming, taming_config, transformers_config

_LIMITS = TamingLimits(("vq",), decoder=False)


def _recognizes(tensors: Tensors) -> bool:
    return taming.FORMAT.recognizes(tensors) and not any("decoder." in name for name in tensors)


def _to_ours(tensors: Tensors, image_size: int) -> tuple[VQConfig, dict[str, Tensor]]:
    parts = taming.own_parts(tensors)
    config = taming_config(parts, image_size, "quantize.embedding.weight", decoder=False)
    return config, {taming.renamed(name, "quantize.", "quantizer."): tensor for name, tensor in parts.items()}


def _from_ours(config: VQConfig, tensors: Tensors) -> dict[str, Tensor]:
    require_taming(config, "chameleon", _LIMITS)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")}
    return {taming.renamed(name, "quantizer.", "quantize."): tensor for name, tensor in kept.items()}


def _model_config(config: VQConfig) -> dict[str, Any]:
    options = require_taming(config, "chameleon", _LIMITS)
    names = {
        "model_type": "chameleon_vqgan",
        "architectures": ["ChameleonVQVAE"],
        "resolution": config.image_size,
        "attn_resolutions": [config.image_size // 2**level for level in options.attention_levels] or None,
        "attn_type": "vanilla" if options.middle_attention else "none",
    }
    return transformers_config(config, **names)


FORMAT = CheckpointFormat(_recognizes, _to_ours, _from_ours, _model_config)
