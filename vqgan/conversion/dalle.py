"""OpenAI's dVAE (openai/DALL-E): encoder and decoder tables, each under its own prefix `encoder.` and `decoder.`.

    theirs                                              ours
    encoder.blocks.input.{w,b}                          encoder.input.{weight,bias}
    encoder.blocks.group_g.block_b.id_path              encoder.groups.(g-1).(b-1).id_path
    encoder.blocks.group_g.block_b.res_path.conv_c      encoder.groups.(g-1).(b-1).res_path.(c-1)
    encoder.blocks.output.conv                          quantizer.proj
    decoder.blocks.input.{w,b}                          quantizer.embed.weight (the rows of w plus b)
    decoder.blocks.output.conv                          decoder.output

The release files are pickled modules, which `vqgan.conversion.dalle_modules` reads as such a table.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from cm3.core.errors import ArtefactError, UsageError
from vqgan.config import VQConfig, checked
from vqgan.conversion.checkpoint_format import CheckpointFormat, Tensors
from vqgan.conversion.layout import sizes

_KINDS = {"w": "weight", "b": "bias"}
_BLOCK = re.compile(r"(encoder|decoder)\.blocks\.group_(\d+)\.block_(\d+)\.(id_path|res_path\.conv_(\d+))\.(w|b)")
_OUR_BLOCK = re.compile(r"(encoder|decoder)\.groups\.(\d+)\.(\d+)\.(id_path|res_path\.(\d+))\.(weight|bias)")


def _recognizes(tensors: Tensors) -> bool:
    return "encoder.blocks.input.w" in tensors and "decoder.blocks.output.conv.w" in tensors


def _to_ours(tensors: Tensors, image_size: int) -> tuple[VQConfig, dict[str, Tensor]]:
    needed = [f"{side}.blocks.{part}.w" for side in ("encoder", "decoder") for part in ("input", "output.conv")]
    needed += [f"{name.removesuffix('w')}b" for name in needed]
    if missing := [name for name in needed if name not in tensors]:
        raise ArtefactError(f"the checkpoint has no tensor {missing[0]!r}; convert encoder and decoder together")
    matches = [match for name in tensors if (match := _BLOCK.fullmatch(name))]
    if not matches:
        raise ArtefactError("the checkpoint has no tensor 'encoder.blocks.group_*': convert the complete encoder and decoder")
    groups = max(int(match[2]) for match in matches)
    hidden = sizes(tensors, "encoder.blocks.input.w", 4)[0]
    sizes(tensors, "decoder.blocks.input.w", 4)
    codebook = tensors["decoder.blocks.input.w"][:, :, 0, 0].T + tensors["decoder.blocks.input.b"]  # (K, D)
    values = {
        "image_size": image_size,
        "downsample_factor": 2 ** (groups - 1),
        "codebook_size": codebook.shape[0],
        "codebook_dim": codebook.shape[1],
        "network": "dvae",
        "network_options": {"hidden": hidden, "groups": groups, "blocks_per_group": max(int(match[3]) for match in matches)},
        "quantizer": "gumbel",
        "quantizer_options": {"latent_dim": hidden * 2 ** (groups - 1)},
    }
    config = checked(VQConfig, values, "the checkpoint as a tokenizer")
    ours = {"quantizer.embed.weight": codebook.contiguous()}
    for kind, name in _KINDS.items():
        ours[f"encoder.input.{name}"] = tensors[f"encoder.blocks.input.{kind}"]
        ours[f"quantizer.proj.{name}"] = tensors[f"encoder.blocks.output.conv.{kind}"]
        ours[f"decoder.output.{name}"] = tensors[f"decoder.blocks.output.conv.{kind}"]
    for match in matches:
        part = "id_path" if match[5] is None else f"res_path.{int(match[5]) - 1}"
        ours[f"{match[1]}.groups.{int(match[2]) - 1}.{int(match[3]) - 1}.{part}.{_KINDS[match[6]]}"] = tensors[match[0]]
    return config, ours


def _from_ours(config: VQConfig, tensors: Tensors) -> dict[str, Tensor]:
    if config.network != "dvae":
        raise UsageError(f"format 'dalle' holds a 'dvae' network, this tokenizer has {config.network!r}")
    theirs = {
        "decoder.blocks.input.w": tensors["quantizer.embed.weight"].T[:, :, None, None].contiguous(),
        "decoder.blocks.input.b": torch.zeros(config.codebook_dim),
    }
    for kind, name in _KINDS.items():
        theirs[f"encoder.blocks.input.{kind}"] = tensors[f"encoder.input.{name}"]
        theirs[f"encoder.blocks.output.conv.{kind}"] = tensors[f"quantizer.proj.{name}"]
        theirs[f"decoder.blocks.output.conv.{kind}"] = tensors[f"decoder.output.{name}"]
    for match in filter(None, map(_OUR_BLOCK.fullmatch, tensors)):
        part = "id_path" if match[5] is None else f"res_path.conv_{int(match[5]) + 1}"
        theirs[f"{match[1]}.blocks.group_{int(match[2]) + 1}.block_{int(match[3]) + 1}.{part}.{match[6][0]}"] = tensors[match[0]]
    return theirs


FORMAT = CheckpointFormat(_recognizes, _to_ours, _from_ours)
