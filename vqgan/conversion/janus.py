"""transformers' `JanusVQVAE`: taming's names, but the decoder's levels are stored from the lowest resolution up.

Its decoding takes code vectors at unit length, while its encoding compares with the vectors as they are; the option
`unit_lookup` of our quantizer "vq" is exactly that.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from cm3.core.errors import ArtefactError
from vqgan.config import VQConfig
from vqgan.conversion.checkpoint_format import CheckpointFormat, Tensors
from vqgan.conversion.layout import TamingLimits, require_taming, taming_config, transformers_config

_LIMITS = TamingLimits(("vq",), unit_lookup=True, fixed_attention=True)
_PREFIXES = ("model.vqmodel.", "vqmodel.")  # inside a whole Janus model
_UP = re.compile(r"(decoder\.up\.)(\d+)(\..*)")


def _own_parts(tensors: Tensors) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return dict(tensors)


def _recognizes(tensors: Tensors) -> bool:
    parts = _own_parts(tensors)
    return "encoder.down.0.block.0.conv1.weight" in parts and "decoder.up.0.upsample.conv.weight" in parts


def _to_ours(tensors: Tensors, image_size: int) -> tuple[VQConfig, dict[str, Tensor]]:
    renamed = _levels_turned(_own_parts(tensors))
    config = taming_config(renamed, image_size, "quantize.embedding.weight", quantizer_options={"unit_lookup": True})
    return config, {name.replace("quantize.", "quantizer.", 1): tensor for name, tensor in renamed.items()}


def _from_ours(config: VQConfig, tensors: Tensors) -> dict[str, Tensor]:
    require_taming(config, "janus", _LIMITS)
    return {name.replace("quantizer.", "quantize.", 1): tensor for name, tensor in _levels_turned(tensors).items()}


def _levels_turned(tensors: Tensors) -> dict[str, Tensor]:
    """The table with the decoder's levels counted from the other end; its own inverse. Raises `ArtefactError` without levels."""
    matches = {name: _UP.fullmatch(name) for name in tensors}
    levels = [int(match[2]) for match in matches.values() if match]
    if not levels:
        raise ArtefactError("the checkpoint has no tensor 'decoder.up.*': it is not Janus's tokenizer; leave --from out")
    last = max(levels)
    return {
        f"{match[1]}{last - int(match[2])}{match[3]}" if (match := matches[name]) else name: tensor
        for name, tensor in tensors.items()
    }


def _model_config(config: VQConfig) -> dict[str, Any]:
    side = config.grid_shape[0]
    return transformers_config(config, model_type="janus_vqgan", architectures=["JanusVQVAE"], out_channels=3, num_patches=side)


FORMAT = CheckpointFormat(_recognizes, _to_ours, _from_ours, _model_config)
