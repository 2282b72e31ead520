"""`cm3 vqgan convert`: a foreign checkpoint to a tokenizer folder, or a tokenizer folder to a foreign table."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from cm3.core.artefact import hash_file, storage_errors, write_json, writing
from cm3.core.errors import InputError, UsageError
from vqgan.conversion import CHECKPOINT_FORMATS
from vqgan.conversion.checkpoint_format import CheckpointFormat, Tensors
from vqgan.conversion.checkpoints import read_tensors
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer, from_pretrained, load_weights

DEFAULT_IMAGE_SIZE = 256


def convert(source: Path | str, out: Path | str, format: str | None = None, image_size: int = DEFAULT_IMAGE_SIZE) -> VQTokenizer:
    """Write the checkpoint at `source` as a tokenizer folder `out`; returns the tokenizer.

    `format`: a name of `CHECKPOINT_FORMATS`, found out from the tensors' names when None. `image_size`: the side of the
    pictures it is to be used with, which no checkpoint states.
    Raises `InputError`, `ArtefactError` for a source that cannot be read or lacks a part, `UsageError` for an unknown format or a
    side that cannot be cut into codes.
    """
    source = Path(source)
    tensors = read_tensors(source)
    name = format or detect(tensors, source)
    chosen: CheckpointFormat = CHECKPOINT_FORMATS.get(name)
    config, ours = chosen.to_ours(tensors, image_size)
    model = VQModel(config)
    load_weights(
        model, {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in ours.items()}, str(source)
    )
    tokenizer = VQTokenizer(model)
    origin = {"format": name, "sha256": hash_file(source)} if source.is_file() else {"format": name}
    tokenizer.save(out, provenance={"converted_from": origin})
    return tokenizer


def export(source: Path | str, out: Path | str, format: str) -> Path:
    """Write the tokenizer folder `source` in the names of `format`; returns the path.

    `out` is a safetensors file where its name ends so; otherwise a folder (model.safetensors and config.json) that the class
    of transformers opens. Raises `UsageError` for a tokenizer that the format can't hold, or a folder of a format without one.
    """
    tokenizer = from_pretrained(source)
    chosen: CheckpointFormat = CHECKPOINT_FORMATS.get(format)
    tensors = {
        name: tensor.contiguous().clone()
        for name, tensor in chosen.from_ours(tokenizer.config, tokenizer.model.state_dict()).items()
    }
    out = Path(out)
    if out.suffix == ".safetensors":
        with storage_errors(out):
            save_file(tensors, out, metadata={"format": "pt"})
        return out
    if chosen.model_config is None:
        raise UsageError(f"format {format!r} is a single file; give an output name that ends in .safetensors, got {out}")
    with writing(out, kind=f"{format}_export") as folder:
        write_json(folder / "config.json", chosen.model_config(tokenizer.config))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return out


def detect(tensors: Tensors, source: Path) -> str:
    """The name of the first format that recognizes `tensors`. Raises `InputError` when none does."""
    for name in CHECKPOINT_FORMATS.names():
        if CHECKPOINT_FORMATS.get(name).recognizes(tensors):
            return name
    first = ", ".join(sorted(tensors)[:5])
    known = ", ".join(CHECKPOINT_FORMATS.names())
    raise InputError(f"{source} is of no known format ({known}); its first tensors are {first}")
