"""taming-transformers' layout, also LDM's first stage and Chameleon's `vqgan.ckpt`.

Encoder and decoder have our names; the codebook is `quantize.embedding.weight`, or `quantize.embed.weight` beside
`quantize.proj` in the Gumbel variant. Losses (`loss.*`) and averages (`model_ema.*`) are left behind.
"""

from __future__ import annotations

from torch import Tensor

from vqgan.config import VQConfig
from vqgan.conversion.checkpoint_format import CheckpointFormat, Tensors
from vqgan.conversion.layout import TamingLimits, require_taming, sizes, taming_config

_LIMITS = TamingLimits(("vq", "gumbel"))
_PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
_PREFIXES = ("", "first_stage_model.", "model.vqmodel.", "vqmodel.")  # alone, in a latent diffusion model, in a Chameleon


def _prefix(tensors: Tensors) -> str | None:
    return next((prefix for prefix in _PREFIXES if f"{prefix}encoder.down.0.block.0.conv1.weight" in tensors), None)


def own_parts(tensors: Tensors) -> dict[str, Tensor]:
    """What of a checkpoint is the tokenizer, under the names it has alone."""
    prefix = _prefix(tensors) or ""
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in plain.items() if name.startswith(_PARTS)}


def _recognizes(tensors: Tensors) -> bool:
    return _prefix(tensors) is not None


def _to_ours(tensors: Tensors, image_size: int) -> tuple[VQConfig, dict[str, Tensor]]:
    parts = own_parts(tensors)
    if "quantize.proj.weight" in parts:
        config = taming_config(
            parts,
            image_size,
            "quantize.embed.weight",
            quantizer="gumbel",
            quantizer_options={"latent_dim": sizes(parts, "quantize.proj.weight", 4)[1], "straight_through": True},
        )
    else:
        config = taming_config(parts, image_size, "quantize.embedding.weight")
    return config, {renamed(name, "quantize.", "quantizer."): tensor for name, tensor in parts.items()}


def _from_ours(config: VQConfig, tensors: Tensors) -> dict[str, Tensor]:
    require_taming(config, "taming", _LIMITS)
    return {renamed(name, "quantizer.", "quantize."): tensor for name, tensor in tensors.items()}


def renamed(name: str, before: str, after: str) -> str:
    """`name` with the prefix `after` in the place of `before`, if it has that."""
    return after + name.removeprefix(before) if name.startswith(before) else name


FORMAT = CheckpointFormat(_recognizes, _to_ours, _from_ours)
