"""The identity of an encoder folder: a hash over the files that decide its vectors, with or without a manifest.

The same weights give the same fingerprint wherever they lie: in an artefact of ours, inside a memory bank, in a model
folder, or as downloaded. File names that only describe (README, licenses, training logs) do not count.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cm3.core.artefact import MANIFEST, hash_file, read_manifest
from cm3.core.errors import ArtefactError

DECISIVE_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "*.safetensors",
    "*.safetensors.index.json",
)


def decisive_files(folder: Path) -> list[Path]:
    """The files of `folder` that decide the vectors, sorted by name."""
    return sorted({file for pattern in DECISIVE_FILES for file in folder.glob(pattern) if file.is_file()})


def encoder_fingerprint(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of the decisive files; hashes stated by a manifest are taken from there.

    Raises `ArtefactError` for a folder without any such file, or with a manifest that does not name one of them.
    """
    files = decisive_files(folder)
    if not files:
        raise ArtefactError(f"{folder} is not an encoder folder: it holds no configuration and no weights")
    stated = read_manifest(folder).files if (folder / MANIFEST).is_file() else None
    total = hashlib.sha256()
    for file in files:
        if stated is not None and file.name not in stated:
            raise ArtefactError(f"{folder} holds {file.name}, which its manifest does not name; remove it")
        content = stated[file.name].sha256 if stated is not None else hash_file(file)
        total.update(f"{file.name}\0{content}\n".encode())
    return total.hexdigest()
