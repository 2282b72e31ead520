"""Writing Chameleon's original layout: one file per model-parallel rank, the tokenizer folder beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from cm3.convert.chameleon_config import require_chameleon
from cm3.convert.chameleon_tokenizer import PLACEHOLDER_SLOT, foreign_tokenizer
from cm3.convert.model_format import ImageSizes, ImageWeights, OpenedModel
from cm3.convert.original_names import HEAD_NORM, LAYER, ROTATED, TOP, head_count
from cm3.convert.rotary_layout import halves_to_pairs
from cm3.core.artefact import write_json
from cm3.core.errors import UsageError
from cm3.model import CM3Config


def write_original(model: OpenedModel, images: ImageWeights, out: Path, shards: int) -> None:
    """Fill the folder `out` with `shards` ranks of the model and its tokenizer.

    Raises `UsageError` for a model that is no Chameleon, that cannot be cut so, or whose heads within a rank differ in QK-norm.
    """
    config = model.config
    require_chameleon(config, ("per_head", "none"))
    if config.tie_word_embeddings or config.attention_bias:
        raise UsageError("Chameleon's original layout has neither tied embeddings nor biases; keep this model in ours")
    if shards < 1 or any(
        count % shards for count in (config.num_key_value_heads, config.intermediate_size, config.vocab_size, config.hidden_size)
    ):
        raise UsageError(
            f"the model cannot be split evenly into {shards} shards; give a divisor of its {config.num_key_value_heads} heads"
        )
    raw_tokenizer = foreign_tokenizer(model.tokenizer, PLACEHOLDER_SLOT)
    models, parts = out / "models" / "model", out / "tokenizer"
    models.mkdir(parents=True)
    parts.mkdir()
    for rank in range(shards):
        name = "consolidated.pth" if shards == 1 else f"consolidated.{rank:02d}.pth"
        torch.save(dict(_rank_tensors(model, rank, shards)), models / name)
    write_json(models / "params.json", {"model": _stated_parameters(config)})
    write_json(models / "consolidate_params.json", {"model_parallel_size": shards})
    write_json(parts / "text_tokenizer.json", raw_tokenizer)
    image_tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in images.tensors.items()}
    torch.save({"state_dict": image_tensors}, parts / "vqgan.ckpt")
    (parts / "vqgan.yaml").write_text(yaml.safe_dump(_stated_image_settings(images.sizes)), "utf-8")


def _rank_tensors(model: OpenedModel, rank: int, shards: int) -> Any:
    """(their name, part) of one rank; each part has a storage of its own."""
    config = model.config
    pairs = {f"layers.{layer}.{name}": name for layer in range(config.num_hidden_layers) for name in (*LAYER, *HEAD_NORM)}
    for theirs, inner in {**pairs, **{name: name for name in TOP}}.items():
        prefix = "" if inner in TOP else "model." + theirs.removesuffix(inner)
        ours = prefix + {**LAYER, **TOP, **HEAD_NORM}[inner][0]
        if ours not in model.tensors and inner in HEAD_NORM:
            continue
        tensor = model.tensors[ours]
        if inner in HEAD_NORM:
            yield theirs, _rank_norm(tensor.chunk(shards)[rank], ours)
            continue
        axis = {**LAYER, **TOP}[inner][1]
        whole = halves_to_pairs(tensor, head_count(config, ROTATED[inner])) if inner in ROTATED else tensor
        yield (
            theirs,
            (whole if axis is None else whole.chunk(shards, dim=axis)[rank]).clone(memory_format=torch.contiguous_format),
        )


def _rank_norm(heads: Tensor, name: str) -> Tensor:
    """(H / R, K), equal rows → (K,). Raises `UsageError` when the heads of one rank differ, which the layout cannot say."""
    if not torch.equal(heads, heads[:1].expand_as(heads)):
        raise UsageError(
            f"{name} differs between heads that one shard would hold, and the original layout has one per shard; "
            "write the layout of transformers (--to chameleon), or as many shards as heads"
        )
    return halves_to_pairs(heads[0], 1).clone()


def _stated_parameters(config: CM3Config) -> dict[str, Any]:
    plain = int(8 * config.hidden_size / 3)
    fits = 256 * -(-plain // 256) == config.intermediate_size
    multiplier = None if fits or config.intermediate_size >= plain else config.intermediate_size / (2 * plain)
    return {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": None if config.num_key_value_heads == config.num_attention_heads else config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": 256 if fits else config.intermediate_size,  # so that rounding up gives the width
        "norm_eps": config.norm_eps,
        "rope_theta": config.rotary_base,
        "qk_normalization": config.qk_norm != "none",
        "swin_norm": config.norm_placement == "post_branch",
    }


def _stated_image_settings(sizes: ImageSizes) -> dict[str, Any]:
    network = {
        "double_z": False,
        "z_channels": sizes.latent_channels,
        "resolution": sizes.resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": sizes.channels,
        "ch_mult": list(sizes.channel_multipliers),
        "num_res_blocks": sizes.residual_blocks,
        "attn_resolutions": list(sizes.attention_resolutions),
        "dropout": 0.0,
    }
    settings = {"embed_dim": sizes.codebook_dim, "n_embed": sizes.codebook_size, "ddconfig": network}
    return {"model": {"params": {**settings, "lossconfig": {"target": "torch.nn.Identity"}, "ckpt_path": None}}}
