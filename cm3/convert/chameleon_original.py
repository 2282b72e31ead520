"""Chameleon and Anole as Meta released them to ours, and back.

    models/7b/   params.json, consolidate_params.json, consolidated.pth, or consolidated.00.pth … one per model-parallel rank
    tokenizer/   text_tokenizer.json, vqgan.yaml, vqgan.ckpt

What a rank holds is said in `original_names`; `original_writer` is the way back. Tensor files are memory-mapped and read with
`weights_only=True`, so a merge holds one tensor at a time.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from cm3.convert.chameleon_config import chameleon_fields
from cm3.convert.chameleon_tokenizer import read_tokenizer
from cm3.convert.model_format import ModelFormat, OpenedModel
from cm3.convert.original_names import HEAD_NORM, LAYER, ROTATED, TOP, head_count
from cm3.convert.original_writer import write_original
from cm3.convert.rotary_layout import pairs_to_halves
from cm3.convert.tensor_tables import RenamedTable
from cm3.core.artefact import read_json
from cm3.core.errors import ArtefactError, InputError
from cm3.core.tensor_files import load_torch
from cm3.model import CM3Config

_LAYER_NAME = re.compile(r"layers\.(\d+)\.(.+)")
_CONTEXT = 4096  # of the released models; no file states it
_IGNORED = ("rope.freqs",)
Shard = Mapping[str, Tensor]


def _recognizes(folder: Path) -> bool:
    return bool(_model_folders(folder))


def _model_folders(folder: Path) -> list[Path]:
    return [path.parent for path in (folder / "params.json", *sorted(folder.glob("models/*/params.json"))) if path.is_file()]


def _open(folder: Path) -> OpenedModel:
    models = _model_folders(folder)
    if len(models) != 1:
        found = ", ".join(str(path) for path in models) or "none"
        raise InputError(f"{folder} holds {len(models)} models ({found}); name the folder of one, with its params.json")
    parts = next((place / "tokenizer" for place in (folder, *folder.parents[:2]) if (place / "tokenizer").is_dir()), None)
    if parts is None:
        raise InputError(f"there is no tokenizer/ in {folder} or beside it; put the release's tokenizer folder there")
    shards = [_shard(file) for file in _shard_files(models[0])]
    stated = _parameters(models[0])
    size, width = shards[0]["tok_embeddings.weight"].shape
    if width * len(shards) != int(stated["dim"]):
        raise ArtefactError(f"{models[0]} has {len(shards)} of {int(stated['dim']) // width} shards; download them all")
    sizes = _image_settings(parts / "vqgan.yaml")
    resolution, codes = int(sizes["ddconfig"]["resolution"]), int(sizes["n_embed"])
    side = resolution // 2 ** (len(sizes["ddconfig"]["ch_mult"]) - 1)
    tokenizer = read_tokenizer(parts / "text_tokenizer.json", codes, (side, side), size)
    config = _our_config(stated, shards, tokenizer.vocab)
    checkpoint = parts / "vqgan.ckpt"
    return OpenedModel(config, _merged(shards, config), tokenizer, checkpoint if checkpoint.is_file() else None, resolution)


def _parameters(folder: Path) -> dict[str, Any]:
    """params.json with its `model` part on the same level, and what consolidate_params.json adds."""
    stated = read_json(folder / "params.json")
    extra = folder / "consolidate_params.json"
    joined = {**stated, **stated.get("model", {}), **(read_json(extra) if extra.is_file() else {})}
    if missing := [name for name in ("dim", "n_heads") if not isinstance(joined.get(name), int)]:
        raise ArtefactError(f"{folder / 'params.json'} does not say {missing[0]!r}; restore it from the release")
    return joined


def _shard_files(folder: Path) -> list[Path]:
    single, numbered = folder / "consolidated.pth", sorted(folder.glob("consolidated.[0-9][0-9].pth"))
    files = [single] if single.is_file() else numbered
    if not files or [file.name for file in numbered] != [f"consolidated.{rank:02d}.pth" for rank in range(len(numbered))]:
        raise ArtefactError(f"{folder} has {len(numbered)} files consolidated.NN.pth, not numbered from 00 on; download them all")
    return files


def _shard(file: Path) -> Shard:
    tensors = load_torch(file, mmap=True)
    needed = ["tok_embeddings.weight", "layers.0.attention.wq.weight", "layers.0.feed_forward.w1.weight"]
    if not isinstance(tensors, Mapping) or (missing := [name for name in needed if name not in tensors]):
        what = f"has no tensor {missing[0]!r}" if isinstance(tensors, Mapping) else "holds no table of tensors"
        raise ArtefactError(f"{file} {what}; expected a shard of a Chameleon")
    return tensors


def _our_config(stated: Mapping[str, Any], shards: Sequence[Shard], vocab: Any) -> CM3Config:
    first = shards[0]
    layers = 1 + max(int(match[1]) for name in first if (match := _LAYER_NAME.match(name)))
    heads = int(stated["n_heads"])
    return CM3Config(
        **chameleon_fields(vocab, reordered=bool(stated.get("swin_norm", False))),
        hidden_size=int(stated["dim"]),
        intermediate_size=len(shards) * first["layers.0.feed_forward.w1.weight"].shape[0],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=int(stated.get("n_kv_heads") or heads),
        max_position_embeddings=_CONTEXT,
        norm_eps=float(stated.get("norm_eps", 1e-5)),
        rotary_base=float(stated.get("rope_theta", 10000.0)),
        qk_norm="per_head" if "layers.0.attention.q_normalization.weight" in first else "none",
        tie_word_embeddings=False,
    )


def _merged(shards: Sequence[Shard], config: CM3Config) -> RenamedTable:
    """Our names → the ranks' parts joined, when looked up. Unknown tensors keep their names, to be reported."""
    makers: dict[str, Callable[[], Tensor]] = {}
    for name in shards[0]:
        match = _LAYER_NAME.fullmatch(name)
        prefix, inner = (f"model.layers.{match[1]}.", match[2]) if match else ("", name)
        if inner in HEAD_NORM and match:
            ours, side = HEAD_NORM[inner]
            makers[prefix + ours] = partial(_joined_norm, shards, name, head_count(config, side) // len(shards))
        elif (entry := (LAYER if match else TOP).get(inner)) is not None:
            rotated = head_count(config, ROTATED[inner]) if inner in ROTATED else 0
            makers[prefix + entry[0]] = partial(_joined, shards, name, entry[1], rotated)
        elif name not in _IGNORED:
            makers[name] = partial(shards[0].__getitem__, name)
    return RenamedTable(makers)


def _joined(shards: Sequence[Shard], name: str, axis: int | None, rotated_heads: int) -> Tensor:
    parts = [shard[name] for shard in shards]
    if axis is not None:
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=axis)
    elif all(torch.equal(part, parts[0]) for part in parts[1:]):
        whole = parts[0]
    else:  # ranks that drifted apart by rounding: their mean, as transformers does
        warnings.warn(
            "the ranks' copies of some norms are not equal; their mean is taken, and comes back to every rank", stacklevel=1
        )
        whole = torch.stack([part.float() for part in parts]).mean(dim=0).to(parts[0].dtype)
    return pairs_to_halves(whole, rotated_heads) if rotated_heads else whole


def _joined_norm(shards: Sequence[Shard], name: str, heads_per_rank: int) -> Tensor:
    """A vector (K,) per rank → (H, K): every head has the one of its rank."""
    return torch.stack([pairs_to_halves(shard[name], 1) for shard in shards]).repeat_interleave(heads_per_rank, dim=0)


def _image_settings(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text("utf-8"))["model"]["params"]
        return {"n_embed": settings["n_embed"], "ddconfig": {**settings["ddconfig"]}}
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        raise ArtefactError(f"{file} is missing or does not describe a VQGAN; restore it from the release") from None


FORMAT = ModelFormat(_recognizes, _open, write_original)
