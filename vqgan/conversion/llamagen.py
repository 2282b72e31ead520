"""LlamaGen's tokenizers (FoundationVision/LlamaGen, `vq_ds16_*.pt`, `vq_ds8_*.pt`): the same network under other names.

    theirs                                            ours
    encoder.conv_blocks.i.res.j / attn.j              encoder.down.i.block.j / attn.j
    encoder.conv_blocks.i.downsample                  encoder.down.i.downsample
    decoder.conv_blocks.i (from the lowest level up)  decoder.up.(last - i)
    mid.0, mid.1, mid.2                               mid.block_1, mid.attn_1, mid.block_2

Codes are compared, and handed on, at unit length: our quantizer "cosine".
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from cm3.core.errors import ArtefactError
from vqgan.config import VQConfig
from vqgan.conversion.checkpoint_format import CheckpointFormat, Tensors
from vqgan.conversion.layout import TamingLimits, require_taming, taming_config

_LIMITS = TamingLimits(("cosine",), fixed_attention=True, channels=128, residual_blocks=2)  # what their `VQModel` fixes
_CODEBOOK = "quantize.embedding.weight"
_STATE = "quantizer.library._codebook."
_MIDDLE = ("block_1", "attn_1", "block_2")
_THEIRS = re.compile(r"(encoder|decoder)\.conv_blocks\.(\d+)\.(res|attn|downsample|upsample)\.(.*)")
_OURS = re.compile(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(block|attn|downsample|upsample)\.(.*)")
_THEIR_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(\d)\.(.*)")
_OUR_MIDDLE = re.compile(r"(encoder|decoder)\.mid\.(block_1|attn_1|block_2)\.(.*)")


def _recognizes(tensors: Tensors) -> bool:
    return "encoder.conv_blocks.0.res.0.conv1.weight" in tensors


def _to_ours(tensors: Tensors, image_size: int) -> tuple[VQConfig, dict[str, Tensor]]:
    last = _last_level(tensors)
    parts = {_our_name(name, last): tensor for name, tensor in tensors.items() if name != "quantize.codebook_used"}
    config = taming_config(parts, image_size, _CODEBOOK, quantizer="cosine")
    codebook = F.normalize(parts.pop(_CODEBOOK).float(), dim=-1)[None]  # (1, K, D)
    parts[_STATE + "embed"], parts[_STATE + "embed_avg"] = codebook, codebook.clone()
    parts[_STATE + "cluster_size"] = torch.ones(codebook.shape[:2])
    parts[_STATE + "initted"] = torch.tensor(True)
    return config, parts


def _from_ours(config: VQConfig, tensors: Tensors) -> dict[str, Tensor]:
    last = len(require_taming(config, "llamagen", _LIMITS).channel_multipliers) - 1
    parts = {_their_name(name, last): tensor for name, tensor in tensors.items() if not name.startswith("quantizer.")}
    return parts | {_CODEBOOK: tensors[_STATE + "embed"][0], "quantize.codebook_used": torch.zeros(65536)}


def _last_level(tensors: Tensors) -> int:
    """The number of the lowest level. Raises `ArtefactError` for a table without levels in LlamaGen's names."""
    levels = [int(match[2]) for name in tensors if (match := _THEIRS.fullmatch(name))]
    if not levels:
        raise ArtefactError("the checkpoint has no tensor 'encoder.conv_blocks.*': it is not LlamaGen's; leave --from out")
    return max(levels)


def _our_name(name: str, last: int) -> str:
    if match := _THEIRS.fullmatch(name):
        side, level, part, rest = match[1], int(match[2]), match[3].replace("res", "block"), match[4]
        return f"encoder.down.{level}.{part}.{rest}" if side == "encoder" else f"decoder.up.{last - level}.{part}.{rest}"
    if match := _THEIR_MIDDLE.fullmatch(name):
        return f"{match[1]}.mid.{_MIDDLE[int(match[2])]}.{match[3]}"
    return name


def _their_name(name: str, last: int) -> str:
    if match := _OURS.fullmatch(name):
        side, level, part, rest = match[1], int(match[2]), match[3].replace("block", "res"), match[4]
        return f"{side}.conv_blocks.{level if side == 'encoder' else last - level}.{part}.{rest}"
    if match := _OUR_MIDDLE.fullmatch(name):
        return f"{match[1]}.mid.{_MIDDLE.index(match[2])}.{match[3]}"
    return name


FORMAT = CheckpointFormat(_recognizes, _to_ours, _from_ours)
