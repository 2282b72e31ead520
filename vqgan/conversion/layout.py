"""Reading the sizes of a VQGAN from the shapes of its tensors, in the names of our `taming` network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from cm3.core.errors import ArtefactError, UsageError
from vqgan.config import VQConfig, checked
from vqgan.conversion.checkpoint_format import Tensors
from vqgan.networks.taming import TamingOptions

_GROUPS = 32


def taming_config(tensors: Tensors, image_size: int, codebook_key: str, decoder: bool = True, **changes: Any) -> VQConfig:
    """The configuration of a table that holds `encoder.*`, `quant_conv.*` (and `decoder.*` where a `decoder` is to be) in our
    names, and a codebook (K, D).

    Raises `ArtefactError` naming the first tensor that is missing or has another number of dimensions, `UsageError` for an
    `image_size` that the network cannot cut into codes.
    """
    needed = ["encoder.conv_in.weight", "encoder.conv_out.weight", "quant_conv.weight", codebook_key]
    for name in needed + ["decoder.conv_out.weight"] * decoder:
        if name not in tensors:
            reason = "it holds no decoder, so codes could not become pictures" if name.startswith("decoder") else "it is needed"
            raise ArtefactError(f"the checkpoint has no tensor {name!r}: {reason}; convert the complete tokenizer")
    found = {int(match[1]) for name in tensors if (match := re.match(r"encoder\.down\.(\d+)\.", name))}
    levels = 1 + max(found, default=0)
    channels = sizes(tensors, "encoder.conv_in.weight", 4)[0]
    widths = [sizes(tensors, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)]
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name))}
    attention = {int(match[1]) for name in tensors if (match := re.match(r"encoder\.down\.(\d+)\.attn\.", name))}
    options = {
        "channels": channels,
        "channel_multipliers": tuple(width // channels for width in widths),
        "residual_blocks": len(blocks),
        "attention_levels": tuple(sorted(attention)),
        "middle_attention": "encoder.mid.attn_1.q.weight" in tensors,
        "latent_channels": sizes(tensors, "encoder.conv_out.weight", 4)[0],
        "groups": _GROUPS,
    }
    codebook_size, codebook_dim = sizes(tensors, codebook_key, 2)
    return checked(
        VQConfig,
        {
            "image_size": image_size,
            "downsample_factor": 2 ** (levels - 1),
            "codebook_size": codebook_size,
            "codebook_dim": codebook_dim,
            "network": "taming",
            "network_options": options,
            "quantizer": "vq",
            "decoder": decoder,
            **changes,
        },
        "the checkpoint as a tokenizer",
    )


def sizes(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    """The shape of tensor `name`. Raises `ArtefactError` when there is none, it is empty, or has not so many dimensions."""
    if name not in tensors:
        raise ArtefactError(
            f"the checkpoint has no tensor {name!r}; convert the complete tokenizer, or name its format with --from"
        )
    shape = tuple(tensors[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise ArtefactError(
            f"tensor {name!r} of the checkpoint is {shape}, expected {dimensions} dimensions that are not empty; "
            "these are other weights"
        )
    return shape


@dataclass(frozen=True)
class TamingLimits:
    """What the code behind a format means by a VQGAN. `quantizers`: those it takes; `unit_lookup`: it hands on vectors of a "vq"
    codebook at unit length; `fixed_attention`: it has attention in the middle and at the lowest level, and nowhere else;
    `decoder`: it needs one; `channels`, `residual_blocks`: the only number that it builds, None where it takes any."""

    quantizers: tuple[str, ...]
    unit_lookup: bool = False
    fixed_attention: bool = False
    decoder: bool = True
    channels: int | None = None
    residual_blocks: int | None = None


def require_taming(config: VQConfig, target: str, limits: TamingLimits) -> TamingOptions:
    """The network of `config`, within the `limits` of format `target`. Raises `UsageError` naming all that it can't hold."""
    if config.network != "taming" or config.quantizer not in limits.quantizers:
        raise UsageError(
            f"format {target!r} holds a 'taming' network with quantizer {' or '.join(map(repr, limits.quantizers))}, "
            f"this tokenizer has {config.network!r} with {config.quantizer!r}"
        )
    options = checked(TamingOptions, config.network_options, "network_options of 'taming'")
    required: dict[str, tuple[object, object]] = {"groups": (options.groups, _GROUPS)}  # what is, what has to be
    if limits.decoder:
        required["decoder"] = (config.decoder, True)
    if limits.channels is not None:
        required["channels"] = (options.channels, limits.channels)
    if limits.residual_blocks is not None:
        required["residual_blocks"] = (options.residual_blocks, limits.residual_blocks)
    if config.quantizer == "vq":
        required["unit_lookup"] = (bool(config.quantizer_options.get("unit_lookup", False)), limits.unit_lookup)
    if limits.fixed_attention:
        lowest = len(options.channel_multipliers) - 1
        required["attention_levels"] = (sorted(set(options.attention_levels)), [lowest])
        required["middle_attention"] = (options.middle_attention, True)
    if differing := [f"{name} {own} (always {needed})" for name, (own, needed) in required.items() if own != needed]:
        raise UsageError(
            f"format {target!r} can't hold {', '.join(differing)}; take another format, or a tokenizer that has what it means"
        )
    return options


def transformers_config(config: VQConfig, **names: Any) -> dict[str, Any]:
    """The keys that `ChameleonVQVAEConfig` and `JanusVQVAEConfig` share, for a tokenizer that `require_taming` lets through."""
    options = checked(TamingOptions, config.network_options, "network_options of 'taming'")
    return {
        "embed_dim": config.codebook_dim,
        "num_embeddings": config.codebook_size,
        "double_latent": False,
        "latent_channels": options.latent_channels,
        "in_channels": 3,
        "base_channels": options.channels,
        "channel_multiplier": list(options.channel_multipliers),
        "num_res_blocks": options.residual_blocks,
        "dropout": 0.0,
        **names,
    }
