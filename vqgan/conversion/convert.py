"""`cm3 vqgan convert`: a foreign checkpoint to a tokenizer folder, or a tokenizer folder to a foreign table."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from cm3.core.artefact import MANIFEST, hash_file, storage_errors
from cm3.core.errors import InputError
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
    Raises `InputError`, `ArtefactError` for a source that cannot be read or lacks a part, `UsageError` for an unknown format.
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
    """Write the tokenizer folder `source` as one safetensors file `out` in the names of `format`; returns its path.

    Raises `UsageError` for a tokenizer that the format can't hold.
    """
    tokenizer = from_pretrained(source)
    chosen: CheckpointFormat = CHECKPOINT_FORMATS.get(format)
    tensors = chosen.from_ours(tokenizer.config, tokenizer.model.state_dict())
    out = Path(out)
    with storage_errors(out):
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, out, metadata={"format": "pt"})
    return out


def is_tokenizer_folder(path: Path) -> bool:
    """Whether `path` looks like a folder of ours, so that "convert" means exporting."""
    return (path / MANIFEST).is_file()


def detect(tensors: Tensors, source: Path) -> str:
    """The name of the first format that recognizes `tensors`. Raises `InputError` when none does."""
    for name in CHECKPOINT_FORMATS.names():
        if CHECKPOINT_FORMATS.get(name).recognizes(tensors):
            return name
    first = ", ".join(sorted(tensors)[:5])
    known = ", ".join(CHECKPOINT_FORMATS.names())
    raise InputError(f"{source} is of no known format ({known}); its first tensors are {first}")
