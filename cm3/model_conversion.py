"""`cm3 convert`: a foreign checkpoint to a whole model folder, and a model folder of ours to a foreign layout.

    folder of a release ─► cm3.convert: configuration, tensors one by one, tokenizer ─┐
                        └► vqgan.conversion: image tokenizer ─────────────────────────┴► cm3.model_folder

What comes out draws, reads, trains and tunes like any model folder. Nothing here holds more than one shard of the model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file

import vqgan
from cm3.convert import MODEL_FORMATS
from cm3.convert.model_format import ImageSizes, ImageWeights, ModelFormat, OpenedModel
from cm3.convert.streamed_model import StreamedModel
from cm3.convert.tensor_tables import SafetensorsTable
from cm3.core import artefact
from cm3.core.errors import ArtefactError, InputError, StorageError, UsageError
from cm3.core.storage import full_disk_errors, sibling
from cm3.core.temporaries import temporary
from cm3.model import CM3Config
from cm3.model.counting import count_parameters
from cm3.model_folder import IMAGE_TOKENIZER, KIND, LANGUAGE_MODEL_KIND, Parts, assemble_model_folder
from cm3.tokens import DocumentTokenizer
from vqgan.conversion import CHECKPOINT_FORMATS
from vqgan.tokenizer import VQTokenizer

_IMAGE_FORMAT = "taming"  # whose names all model formats use for their image tokenizer


@dataclass(frozen=True)
class Converted:
    """What came of a conversion: the folder, the format read or written, parameters of the transformer."""

    path: Path
    format: str
    parameters: int


def convert(
    source: Path | str, out: Path | str, format: str | None = None, image_tokenizer: Path | str | None = None
) -> Converted:
    """Write the checkpoint folder `source` as a model folder `out`, in the dtype that it has.

    format: a name of `MODEL_FORMATS`, found out by default; image_tokenizer: a tokenizer folder of ours, or a checkpoint file,
    for a source without the part that makes pictures of codes (transformers' own Chameleon checkpoints).
    Raises `InputError` for a source that is of no known format, `ArtefactError` for one that is damaged, incomplete or whose
    parts do not belong together, `StorageError` when `out` cannot be written.
    """
    source, out = Path(source), Path(out)
    name = format or detect(source)
    artefact.require_replaceable(out, KIND)
    opened = _format(name).open(_folder(source))
    model = StreamedModel(opened.config, opened.tensors, str(source))
    with _scratch(out) as scratch:
        images = _image_tokenizer(opened, Path(image_tokenizer) if image_tokenizer else None, scratch, source)
        provenance = {"converted_from": {"format": name, "source": source.name}}
        assemble_model_folder(out, model, opened.tokenizer, Parts(image_tokenizer=images), provenance)
    return Converted(out, name, count_parameters(opened.config).total)


def export(
    source: Path | str, out: Path | str, format: str, shards: int = 1, image_tokenizer: Path | str | None = None
) -> Converted:
    """Write the model folder `source` into the new folder `out` in the layout of `format`.

    shards: model-parallel files, for layouts that have them; image_tokenizer: a tokenizer folder of ours for a bare language
    model (what a training run wrote). Raises `UsageError` for a model that the format cannot hold, `StorageError` when `out`
    is there already.
    """
    source, out = Path(source), Path(out)
    chosen = _format(format)
    manifest = artefact.verify(source)
    if manifest.kind not in (KIND, LANGUAGE_MODEL_KIND):
        raise ArtefactError(f"{source} is an artefact of kind {manifest.kind!r}, expected a model folder ({KIND!r})")
    images = Path(image_tokenizer) if image_tokenizer else source / IMAGE_TOKENIZER
    if not images.is_dir():
        raise UsageError(f"{source} has no {IMAGE_TOKENIZER}/, which format {format!r} needs; give one with --image-tokenizer")
    tokenizer = vqgan.from_pretrained(images)
    documents = DocumentTokenizer.load(source, tokenizer)
    config = CM3Config.from_pretrained(source)
    opened = OpenedModel(config, SafetensorsTable(source), documents, None, tokenizer.image_size)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out} is there already and is not replaced; choose another place or move it")
    with _scratch(out) as scratch:
        made = scratch / "made"
        made.mkdir()
        chosen.write(opened, _image_weights(tokenizer), made, shards)
        with artefact.storage_errors(out):
            if out.exists():
                out.rmdir()
            os.rename(made, out)
    return Converted(out, format, count_parameters(config).total)


def detect(source: Path) -> str:
    """The name of the first format that recognizes the folder. Raises `InputError` when none does."""
    folder = _folder(source)
    if (folder / artefact.MANIFEST).is_file():
        raise UsageError(f"{source} is an artefact folder of ours; to write it in another layout, say which with --to")
    for name in MODEL_FORMATS.names():
        if _format(name).recognizes(folder):
            return name
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    known = ", ".join(MODEL_FORMATS.names())
    raise InputError(
        f"{source} is of no known format ({known}); it holds {found}; name the folder with config.json or params.json"
    )


def _format(name: str) -> ModelFormat:
    chosen: ModelFormat = MODEL_FORMATS.get(name)
    return chosen


def _folder(source: Path) -> Path:
    if not source.is_dir():
        what = "it is a file" if source.exists() else "there is none"
        raise InputError(f"{source} is no checkpoint folder ({what}); name the folder that holds config.json or params.json")
    return source


def _image_tokenizer(opened: OpenedModel, given: Path | None, scratch: Path, source: Path) -> Path:
    """An image tokenizer folder: the given one, or made of what the source or the given file holds."""
    if given is not None and (given / artefact.MANIFEST).is_file():
        return given
    checkpoint = given or opened.image_weights
    if checkpoint is None:
        raise InputError(
            f"{source} holds no decoder of its image tokenizer, so codes could not become pictures; give the release's "
            "tokenizer/vqgan.ckpt (or a tokenizer folder of ours) with --image-tokenizer"
        )
    if not isinstance(checkpoint, Path):
        tensors = {name: tensor.contiguous() for name, tensor in checkpoint().items()}
        checkpoint = scratch / "image_tokenizer.safetensors"
        save_file(tensors, checkpoint)
    vqgan.convert(checkpoint, scratch / IMAGE_TOKENIZER, _IMAGE_FORMAT, opened.image_resolution)
    return scratch / IMAGE_TOKENIZER


def _image_weights(tokenizer: VQTokenizer) -> ImageWeights:
    config = tokenizer.config
    tensors: Mapping = CHECKPOINT_FORMATS.get(_IMAGE_FORMAT).from_ours(config, tokenizer.model.state_dict())
    options = config.network_options
    sizes = ImageSizes(
        resolution=config.image_size,
        codebook_size=config.codebook_size,
        codebook_dim=config.codebook_dim,
        channels=options["channels"],
        channel_multipliers=tuple(options["channel_multipliers"]),
        residual_blocks=options["residual_blocks"],
        latent_channels=options["latent_channels"],
        attention_resolutions=tuple(config.image_size // 2**level for level in options["attention_levels"]),
    )
    return ImageWeights(tensors, sizes)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what is on its way, removed at the end; one of a dead process is swept."""
    out = out.absolute()
    place = temporary(sibling(out, suffix=".conversion"))
    with artefact.storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        artefact.sweep(out.parent)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    try:
        with full_disk_errors(out):
            yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
