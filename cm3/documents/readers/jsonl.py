"""JSONL: one JSON object per line, UTF-8, pictures as files named relative to the JSONL file (or absolutely).

Full form:   {"id", "segments": [{"type": "text", "text"}, {"type": "image", "path" | "codes"}], "meta": {...}}
Shorthand:   {"id"?, "image" | "images" | "file_name" | "path", "text" | "caption", anything else → meta}

A folder stands for its `documents.jsonl` (what our writer makes), or its only `.jsonl` file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from cm3.core.errors import InputError
from cm3.documents.document import Document, ImageSegment
from cm3.documents.records import ReadOptions, Record, document_from_json, image_segment
from cm3.documents.texts import parse_json

DOCUMENTS_FILE = "documents.jsonl"


def find_records(source: Path | str, options: ReadOptions) -> Iterator[Record]:
    """One record per line that is not blank."""
    path = jsonl_file(Path(source))
    try:
        stream = open(path, "rb")  # noqa: SIM115 - closed below; only a failed opening is the user's
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    with stream:
        for number, line in _lines(stream, options.max_record_bytes):
            build = partial(_build, line, f"{path.stem}-{number:08d}", path.parent, options)
            yield Record(str(path), f"line {number}", build)


def jsonl_file(source: Path) -> Path:
    """The JSONL file that `source` (a file or a folder) means. Raises `InputError` when there is none or no single one."""
    if source.is_file():
        return source
    if (source / DOCUMENTS_FILE).is_file():
        return source / DOCUMENTS_FILE
    candidates = sorted(source.glob("*.jsonl"))
    if len(candidates) != 1:
        found = f"{len(candidates)} .jsonl files" if candidates else "no .jsonl file"
        raise InputError(f"{source} holds {found}, expected {DOCUMENTS_FILE} or exactly one; name the file itself")
    return candidates[0]


def _lines(stream: BinaryIO, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Numbered lines from 1; of a line that is too long only a prefix (longer than `max_bytes`) is kept in memory."""
    number = 0
    while line := stream.readline(max_bytes + 2):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and (rest := stream.readline(max_bytes)):
            pass
        if line.strip():
            yield number, line


def _build(line: bytes, default_id: str, folder: Path, options: ReadOptions) -> Document:
    value = parse_json(line, options.max_record_bytes)
    return document_from_json(value, default_id, partial(_load, folder, options), options)


def _load(folder: Path, options: ReadOptions, name: str) -> ImageSegment:
    return image_segment(folder / name, options)  # an absolute name stands for itself
