"""transformers' `ChameleonVQVAE`: taming's names, encoder and quantizer alone, for models that read pictures and draw none.

Ours to theirs drops the decoder. The other way there is nothing to decode with: convert Chameleon's own `vqgan.ckpt`, which is
of format "taming" and complete.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vqgan.config import VQConfig
from vqgan.conversion import taming
from vqgan.conversion.checkpoint_format import CheckpointFormat, Tensors
from vqgan.conversion.layout import require_taming, transformers_config


def _recognizes(tensors: Tensors) -> bool:
    return taming.FORMAT.recognizes(tensors) and not any("decoder." in name for name in tensors)


def _from_ours(config: VQConfig, tensors: Tensors) -> dict[str, Tensor]:
    require_taming(config, "chameleon", ("vq",))
    whole = taming.FORMAT.from_ours(config, tensors)
    return {name: tensor for name, tensor in whole.items() if not name.startswith("decoder.")}


def _model_config(config: VQConfig) -> dict[str, Any]:
    options = require_taming(config, "chameleon", ("vq",))
    names = {
        "model_type": "chameleon_vqgan",
        "architectures": ["ChameleonVQVAE"],
        "resolution": config.image_size,
        "attn_resolutions": [config.image_size // 2**level for level in options.attention_levels] or None,
        "attn_type": "vanilla" if options.middle_attention else "none",
    }
    return transformers_config(config, **names)


FORMAT = CheckpointFormat(_recognizes, taming.FORMAT.to_ours, _from_ours, _model_config)
