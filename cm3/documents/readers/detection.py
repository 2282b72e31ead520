"""Which format a source has, from its names and the first bytes of a table at most."""

from __future__ import annotations

from pathlib import Path

from cm3.core.errors import InputError
from cm3.documents.images import IMAGE_SUFFIXES
from cm3.documents.readers.file_set import FolderFiles, open_file_set
from cm3.documents.readers.jsonl import DOCUMENTS_FILE
from cm3.documents.readers.sources import expand_source
from cm3.documents.readers.table import tables_in

_BY_SUFFIX = {".jsonl": "jsonl", ".csv": "table", ".tsv": "table"}


def detect_format(source: Path | str) -> str:
    """The name in `READERS` of the format of `source`: a folder, a file, or several tars.

    A tar with an index table inside is a `table`, any other `webdataset`. A folder is, in this order: `jsonl` (it has
    documents.jsonl), `webdataset` (tars), `table` (an index table), `folder` (pictures at any depth), `jsonl` (one .jsonl).
    Raises `InputError` saying what was found when it is none of these.
    """
    path = expand_source(source)[0]
    if path.is_dir():
        return _folder_format(path)
    suffix = path.suffix.lower()
    if suffix == ".tar":
        with open_file_set(path, keep_truncated=True) as files:
            return "table" if tables_in(files) else "webdataset"
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if suffix in IMAGE_SUFFIXES:
        raise InputError(f"{path} is a single picture; give the folder it lies in")
    raise InputError(f"{path} is of no known type ({suffix or 'no suffix'}); expected a folder, .jsonl, .tar, .csv or .tsv")


def _folder_format(path: Path) -> str:
    try:
        entries = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"the folder {path} cannot be read: {error.strerror}") from None
    if not entries:
        raise InputError(f"the folder {path} is empty; expected pictures, .jsonl or .tar files")
    if DOCUMENTS_FILE in entries:
        return "jsonl"
    if any(name.endswith(".tar") for name in entries):
        return "webdataset"
    files = FolderFiles(path)
    if tables_in(files):
        return "table"
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in files.names):
        return "folder"
    if sum(name.endswith(".jsonl") for name in entries) == 1:
        return "jsonl"
    shown = ", ".join(sorted(entries)[:3])
    raise InputError(f"the folder {path} holds no pictures (found {shown}); expected image, .jsonl or .tar files")
