"""Folders of documents joined into one, in order: what was written in parts becomes what one writing would have made.

Parts are folders that a writer of `cm3.documents.writers` filled, with documents of different ids. Tars and pictures are not
copied but linked where the file system can, so joining costs neither time nor space worth mentioning; the parts stay as they are.
A new format has one function here, one in `writers`, and a line in both registries.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from cm3.core.registry import Registry
from cm3.documents.readers.jsonl import DOCUMENTS_FILE
from cm3.documents.tar_members import sidecar_path
from cm3.documents.writers import IMAGES_FOLDER, shard_name

JOINERS = Registry(
    "joiner",
    {
        "webdataset": "cm3.documents.joining:join_webdataset",
        "jsonl": "cm3.documents.joining:join_jsonl",
    },
)


def join_documents(parts: Sequence[Path], folder: Path, format: str) -> None:
    """Fill the empty `folder` with the documents of `parts`, all in `format`. Files that are not of the format stay behind.

    Raises `UsageError` for an unknown format; `OSError` as the operating system does.
    """
    JOINERS.get(format)(parts, folder)


def join_webdataset(parts: Sequence[Path], folder: Path) -> None:
    """The tars of all parts, numbered through, each with its sidecar."""
    numbers = itertools.count()
    for part in parts:
        for tar in sorted(part.glob("*.tar")):
            joined = folder / shard_name(next(numbers))
            _place(tar, joined)
            _place(sidecar_path(tar), sidecar_path(joined))


def join_jsonl(parts: Sequence[Path], folder: Path) -> None:
    """The lines of all parts in one file, and their pictures, which are called after their documents, in one folder."""
    (folder / IMAGES_FOLDER).mkdir()
    with open(folder / DOCUMENTS_FILE, "wb") as joined:
        for part in parts:
            with open(part / DOCUMENTS_FILE, "rb") as lines:
                shutil.copyfileobj(lines, joined)
            for picture in sorted((part / IMAGES_FOLDER).iterdir()):
                _place(picture, folder / IMAGES_FOLDER / picture.name)


def _place(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
