"""Chameleon and Anole in the layout of transformers (`ChameleonForConditionalGeneration`) to ours, and back.

    config.json, model*.safetensors (+ index), tokenizer.json

The transformer's parameters have our names; the image tokenizer lies under `model.vqmodel.`, in taming's names. transformers'
own checkpoints hold only its encoder; Anole's, and what is written here, the decoder too, which transformers passes over.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig, GenerationConfig
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from cm3.convert.chameleon_config import chameleon_fields, require_chameleon
from cm3.convert.chameleon_tokenizer import (
    BOS,
    END_OF_TURN,
    EOS,
    IMAGE_CLOSE,
    IMAGE_OPEN,
    IMAGE_PLACEHOLDER,
    PAD,
    UNKNOWN,
    foreign_tokenizer,
    read_tokenizer,
)
from cm3.convert.model_format import ImageSizes, ImageWeights, ModelFormat, OpenedModel
from cm3.convert.tensor_tables import RenamedTable, SafetensorsTable, write_sharded
from cm3.core.artefact import read_json, write_json
from cm3.core.errors import ArtefactError, UsageError
from cm3.model import CM3Config

VQ_PREFIX = "model.vqmodel."
_CONFIG = "config.json"


def _recognizes(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() and _raw_config(folder).get("model_type") == "chameleon"


def _open(folder: Path) -> OpenedModel:
    raw = _raw_config(folder)
    sizes = raw.get("vq_config") or {}
    resolution, codes = int(sizes.get("resolution", 512)), int(sizes.get("num_embeddings", 8192))
    multipliers = sizes.get("channel_multiplier", ChameleonVQVAEConfig().channel_multiplier)
    side = resolution // 2 ** (len(multipliers) - 1)
    table = SafetensorsTable(folder)
    tokenizer = read_tokenizer(folder / "tokenizer.json", codes, (side, side), int(raw.get("vocab_size", 65536)))
    image_names = {name.removeprefix(VQ_PREFIX): name for name in table if name.startswith(VQ_PREFIX)}
    text_names = {name: (lambda name=name: table[name]) for name in table if not name.startswith(VQ_PREFIX)}
    has_decoder = any(name.startswith("decoder.") for name in image_names)
    return OpenedModel(
        _our_config(raw, tokenizer.vocab, folder),
        RenamedTable(text_names),
        tokenizer,
        (lambda: {name: table[theirs] for name, theirs in image_names.items()}) if has_decoder else None,
        resolution,
    )


def _our_config(raw: Mapping[str, Any], vocab: Any, folder: Path) -> CM3Config:
    rotary = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    unknown = {
        "hidden_act": raw.get("hidden_act", "silu") != "silu",
        "mlp_bias": bool(raw.get("mlp_bias", False)),
        "rope_parameters": rotary.get("rope_type", rotary.get("type", "default")) != "default",
    }
    if strange := [name for name, is_strange in unknown.items() if is_strange]:
        raise ArtefactError(
            f"{folder / _CONFIG}: {strange[0]}={raw[strange[0]]!r} is a variant that our transformer does not have"
        )
    known = ChameleonConfig()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    kept = ("attention_bias", "attention_dropout", "initializer_range", "tie_word_embeddings")
    given = {name: raw.get(name, getattr(known, name)) for name in (*names, *kept)}
    return CM3Config(
        **chameleon_fields(vocab, reordered=bool(raw.get("swin_norm", False))),
        **given,
        num_key_value_heads=raw.get("num_key_value_heads") or given["num_attention_heads"],
        norm_eps=raw.get("rms_norm_eps", known.rms_norm_eps),
        rotary_base=float(rotary.get("rope_theta", raw.get("rope_theta", 10000.0))),
        qk_norm="per_head",
    )


def _raw_config(folder: Path) -> dict[str, Any]:
    raw = read_json(folder / _CONFIG)
    return raw if isinstance(raw, dict) else {}


def _write(model: OpenedModel, images: ImageWeights, out: Path, shards: int) -> None:
    if shards != 1:
        raise UsageError("the layout of transformers has no model-parallel shards; leave --shards out")
    config = model.config
    require_chameleon(config, ("per_head",))
    raw_tokenizer = foreign_tokenizer(model.tokenizer, IMAGE_PLACEHOLDER)
    names = {entry["content"]: entry["id"] for entry in raw_tokenizer["added_tokens"]}
    foreign = _foreign_config(config, images.sizes, {**raw_tokenizer["model"]["vocab"], **names})

    def tensors() -> Any:
        dtype = torch.float32
        for name in model.tensors:
            tensor = model.tensors[name]
            dtype = tensor.dtype
            yield name, tensor
        for name, tensor in images.tensors.items():
            yield VQ_PREFIX + name, _narrowed(tensor, dtype)
        foreign.dtype = dtype

    write_sharded(tensors(), out)
    foreign.save_pretrained(out)
    GenerationConfig.from_model_config(foreign).save_pretrained(out)
    write_json(out / "tokenizer.json", raw_tokenizer)
    write_json(out / "tokenizer_config.json", _TOKENIZER_CONFIG)
    write_json(out / "processor_config.json", {"processor_class": "ChameleonProcessor", "image_seq_length": _image_tokens(model)})
    write_json(out / "preprocessor_config.json", _preprocessing(images.sizes.resolution))


def _foreign_config(config: CM3Config, sizes: ImageSizes, names: Mapping[str, int]) -> ChameleonConfig:
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    kept = ("max_position_embeddings", "attention_bias", "attention_dropout", "initializer_range", "tie_word_embeddings")
    ids = ("pad_token_id", "bos_token_id", "eos_token_id")
    return ChameleonConfig(
        **{name: getattr(config, name) for name in (*same, *kept, *ids)},
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rotary_base},
        swin_norm=config.norm_placement == "post_branch",
        architectures=["ChameleonForConditionalGeneration"],
        vocabulary_map=dict(names),
        vq_config=ChameleonVQVAEConfig(
            embed_dim=sizes.codebook_dim,
            num_embeddings=sizes.codebook_size,
            latent_channels=sizes.latent_channels,
            resolution=sizes.resolution,
            base_channels=sizes.channels,
            channel_multiplier=list(sizes.channel_multipliers),
            num_res_blocks=sizes.residual_blocks,
            attn_resolutions=list(sizes.attention_resolutions) or None,
        ),
    )


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In `dtype` if that loses nothing (it was in it before ours kept it in float32), else as it is."""
    narrow = tensor.to(dtype)
    return narrow if torch.equal(narrow.to(tensor.dtype), tensor) else tensor


def _image_tokens(model: OpenedModel) -> int:
    return model.tokenizer.vocab.num_image_tokens


def _preprocessing(resolution: int) -> dict[str, Any]:
    return {
        "image_processor_type": "ChameleonImageProcessor",
        "do_convert_rgb": True,
        "size": {"shortest_edge": resolution},
        "crop_size": {"height": resolution, "width": resolution},
        "rescale_factor": 0.0078,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
        "resample": 1,
    }


_TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": BOS,
    "eos_token": EOS,
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "sep_token": END_OF_TURN,
    "image_token": IMAGE_PLACEHOLDER,
    "boi_token": IMAGE_OPEN,
    "eoi_token": IMAGE_CLOSE,
    "clean_up_tokenization_spaces": False,
}

FORMAT = ModelFormat(_recognizes, _open, _write)
