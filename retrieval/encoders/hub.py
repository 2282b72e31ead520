"""Encoders by the name of a repository on the Hugging Face hub: fetched once into its cache, then like any folder."""

from __future__ import annotations

import re
from pathlib import Path

from cm3.core.errors import InputError
from retrieval.encoders.fingerprint import DECISIVE_FILES

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def encoder_folder(path: Path | str) -> Path:
    """`path` itself if it is a folder, else the cached files of the repository it names ("openai/clip-vit-large-patch14").

    Raises `InputError` when it is neither, or cannot be fetched.
    """
    folder = Path(path)
    if folder.is_dir() or not _REPOSITORY.fullmatch(str(path)):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=[*DECISIVE_FILES, "tokenizer_config.json"]))
    except Exception as error:  # its errors for no network, no such repository and no access share no parent
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"there is no encoder folder {path}, and it cannot be fetched from the hub: {reason}") from None
