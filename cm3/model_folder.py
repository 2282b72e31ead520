"""The model folder: everything inference needs in one artefact, in the ecosystem's own layouts.

    my-model/
      config.json, model.safetensors, generation_config.json     transformers (CM3ForCausalLM)
      tokenizer.json, tokenizer_config.json, token_layout.json   the document tokenizer
      tasks.json                                                 the task options it was tuned with, if it was
      image_tokenizer/                                           vqgan; optional (text alone then)
      encoder/                                                   CLIP, for reranking and retrieval; optional
      memory/                                                    memory bank and index; optional
      manifest.json                                              sizes, SHA-256, versions, provenance; written last

Parts that do not belong together are refused, before anything is loaded, with a sentence that names both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

import vqgan
from cm3.core import artefact
from cm3.core.artefact import Manifest
from cm3.core.errors import ArtefactError, InputError
from cm3.model import CM3Config, CM3ForCausalLM
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.tokens.vocab import Vocab
from retrieval.encoders.fingerprint import encoder_fingerprint

KIND = "model"
LANGUAGE_MODEL_KIND = "language_model"  # what pretraining and tuning write: a model folder without its other parts
IMAGE_TOKENIZER, ENCODER, MEMORY = "image_tokenizer", "encoder", "memory"
_HUB_TIMEOUT_S = 10
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PART_NAMES = (IMAGE_TOKENIZER, ENCODER, MEMORY)


@dataclass(frozen=True)
class Parts:
    """The folders that go into a model folder beside the model, each an artefact; None: without it."""

    image_tokenizer: Path | None = None
    encoder: Path | None = None
    memory: Path | None = None

    def present(self) -> dict[str, Path]:
        """Name → folder of the parts that there are."""
        named = {IMAGE_TOKENIZER: self.image_tokenizer, ENCODER: self.encoder, MEMORY: self.memory}
        return {name: artefact.current(path) for name, path in named.items() if path is not None}


@dataclass(frozen=True)
class ModelFolder:
    """An opened model folder. `tokenizer` holds the image tokenizer if there is one."""

    path: Path
    manifest: Manifest
    model: CM3ForCausalLM
    tokenizer: DocumentTokenizer
    parts: Parts


class SavedModel(Protocol):
    """What a model folder asks of a model: `CM3ForCausalLM`, or one that is written without being in memory."""

    config: CM3Config

    def save_pretrained(self, folder: Path) -> None:
        """Write configuration and weights in the layout of transformers."""


def assemble_model_folder(
    out: Path,
    model: CM3ForCausalLM | SavedModel,
    tokenizer: DocumentTokenizer,
    parts: Parts,
    provenance: Mapping[str, Any] | None = None,
    json_files: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model folder, whole or not at all, and return its path; a folder of that name is replaced.

    json_files: further files, name → value (`tasks.json`). Raises `ArtefactError` when the parts do not belong together
    or one of them is damaged, `StorageError` when the disk is full.
    """
    present = parts.present()
    fingerprints = {name: _verified_fingerprint(name, path) for name, path in present.items()}
    require_fitting(model.config, tokenizer.vocab, str(out))
    _require_own_encoder(present)
    if IMAGE_TOKENIZER in present:
        DocumentTokenizer(tokenizer.vocab, tokenizer.text, vqgan.from_pretrained(present[IMAGE_TOKENIZER]))
    stated = {"parts": fingerprints, "tokenizer": tokenizer.fingerprint}
    with artefact.writing(out, kind=KIND, provenance={**(provenance or {}), **stated}) as folder:
        model.save_pretrained(folder)
        tokenizer.save(folder)
        for name, path in present.items():
            shutil.copytree(path, folder / name)
        for name, value in (json_files or {}).items():
            artefact.write_json(folder / name, value)
    return Path(out)


def open_model_folder(
    path: Path | str, verify: bool = True, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> ModelFolder:
    """Open a model folder, or the bare language model that a training run wrote; the model is in evaluation mode.

    path: a folder, or "owner/name" on the Hugging Face hub; verify: compare every file with its SHA-256 (its size is compared
    anyway); dtype: of the model's weights (None: as they are stored). Raises `InputError` when there is no folder,
    `ArtefactError` when it is damaged or its parts do not belong together.
    """
    path = local_folder(path)
    manifest = artefact.read_manifest(path)
    if manifest.kind not in (KIND, LANGUAGE_MODEL_KIND):
        raise ArtefactError(f"{path} is an artefact of kind {manifest.kind!r}, expected a model folder ({KIND!r})")
    present = _require_stated_parts(path, manifest)
    artefact.verify(path, hashes=verify)
    images = vqgan.from_pretrained(present[IMAGE_TOKENIZER], device, check=False) if IMAGE_TOKENIZER in present else None
    tokenizer = _load_tokenizer(path, manifest, images)
    config = CM3Config.from_pretrained(path)
    require_fitting(config, tokenizer.vocab, str(path))
    model = CM3ForCausalLM.from_pretrained(path, config=config, dtype=dtype or "auto").to(device).eval()
    return ModelFolder(path, manifest, model, tokenizer, Parts(**present))


def local_folder(path: Path | str) -> Path:
    """The folder at `path`, or a local copy of what the Hugging Face hub has under that name. Raises `InputError`."""
    folder = Path(path)
    if os.path.isdir(folder):  # unlike Path.is_dir, also when a text was given that is no possible name
        if not (folder / artefact.MANIFEST).exists() and (folder / KIND / artefact.MANIFEST).exists():
            raise InputError(f"{folder} is no model folder, but {folder / KIND} is one; give that")
        return folder
    if not _HUB_ID.fullmatch(str(path)) or folder.parent.exists():
        raise InputError(f"there is no model folder at {str(path)[:200]}; check the path")
    local = not _hub_knows(str(path))
    try:
        manifest = json.loads(Path(hf_hub_download(str(path), artefact.MANIFEST, local_files_only=local)).read_text("utf-8"))
        patterns = [artefact.MANIFEST, *manifest["files"]]
        return Path(snapshot_download(str(path), allow_patterns=patterns, local_files_only=local))
    except (OSError, ValueError, KeyError, TypeError) as error:  # the hub's own errors are OSError or ValueError
        reason = "the hub does not know it, or cannot be reached" if local else str(error).splitlines()[0]
        raise InputError(f"{path} is neither a folder nor a model folder on the hub ({reason}); check the path") from None


def _hub_knows(name: str) -> bool:
    """Whether the hub can be asked about `name` and has it; without the hub's own patience with a network that is not there."""
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except Exception:  # of the hub and of whatever network library it uses; a local copy may still do
        return False
    return True


def require_fitting(config: CM3Config, vocab: Vocab, where: str) -> None:
    """Raise `ArtefactError` unless a model of `config` speaks the ids of `vocab`; `where` is what the message calls them."""
    expected = {
        "vocab_size": vocab.size,
        "image_start": vocab.image_start,
        "image_stop": vocab.image_stop,
        "grid_shape": vocab.grid_shape,
    }
    for name, value in expected.items():
        given = getattr(config, name)
        if given is not None and given != value:
            raise ArtefactError(f"{where}: the model has {name}={given}, its vocabulary {value}; they do not belong together")


def _load_tokenizer(path: Path, manifest: Manifest, images: Any) -> DocumentTokenizer:
    tokenizer = DocumentTokenizer.load(path, images)
    stated = manifest.provenance.get("tokenizer")
    if isinstance(stated, str) and stated != tokenizer.fingerprint:
        raise ArtefactError(
            f"{path}: the document tokenizer ({tokenizer.fingerprint[:12]}) is not the one that the model was made with "
            f"({stated[:12]}); they do not belong together"
        )
    return tokenizer


def _require_stated_parts(path: Path, manifest: Manifest) -> dict[str, Path]:
    """The parts that the manifest states, each the very one: equal fingerprints."""
    stated = manifest.provenance.get("parts", {}) if manifest.kind == KIND else {}
    present = {name: path / name for name in PART_NAMES if name in stated}
    for name, folder in present.items():
        if not folder.is_dir():
            raise ArtefactError(f"{path} is incomplete: {name}/ is missing; restore it from a copy or make the folder again")
        if (given := _fingerprint(name, folder)) != stated[name]:
            raise ArtefactError(
                f"{path}: {name}/ ({given[:12]}) is damaged, or not the part that the model was put together with "
                f"({stated[name][:12]}): they do not belong together; restore it from a copy"
            )
    _require_own_encoder(present)
    return present


def _verified_fingerprint(name: str, folder: Path) -> str:
    if name != ENCODER or (folder / artefact.MANIFEST).exists():
        artefact.verify(folder)
    return _fingerprint(name, folder)


def _fingerprint(name: str, folder: Path) -> str:
    """Of an encoder over the files that decide its vectors (a downloaded one has no manifest), else of the manifest."""
    return encoder_fingerprint(folder) if name == ENCODER else artefact.fingerprint(folder)


def _require_own_encoder(present: Mapping[str, Path]) -> None:
    """A memory searched with another encoder than its vectors were made with finds nonsense."""
    if MEMORY not in present or ENCODER not in present or (present[MEMORY] / ENCODER).is_dir():
        return
    stated = artefact.read_json(present[MEMORY] / "bank.json").get("encoder", "")
    given = encoder_fingerprint(present[ENCODER])
    if stated != given:
        raise ArtefactError(
            f"{present[MEMORY]} was embedded with encoder {stated[:12]}, {present[ENCODER]} is encoder {given[:12]}; "
            "they do not belong together"
        )
