"""Documents on disk beside their vectors, read one at a time from memory-mapped files; `document_writer` writes them.

    documents.jsonl     one JSON object per document: {"id", "segments", "meta"}
    offsets.npy         (N + 1,) int64: document i is bytes offsets[i] to offsets[i + 1] of documents.jsonl
    pictures.bin        the PNG files of all pictures, one after another; a segment names its place in it
    ids.json            the ids in row order, unique
    content.npy         (N, 2) uint64: a hash of the text and a hash of the pixels, 0 where there is none

A text segment is {"type": "text", "text"}; an image segment {"type": "image", "at": [start, length]},
{"type": "image", "codes": [[…]]}, or one with both.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cm3.core.arrays import read_array
from cm3.core.errors import ArtefactError
from cm3.documents.document import Document, ImageSegment, Segment, TextSegment


class DocumentStore:
    """The documents of a finished folder by row. Raises `ArtefactError` when the files contradict each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offsets = _load_array(folder / "offsets.npy", np.dtype(np.int64), 1)
        self.content = _load_array(folder / "content.npy", np.dtype(np.uint64), 2)
        self._lines, self._pictures = _map(folder / "documents.jsonl"), _map(folder / "pictures.bin")
        steps = np.diff(self.offsets)
        if not len(self.offsets) or self.offsets[0] != 0 or (steps <= 0).any() or self.offsets[-1] != len(self._lines):
            raise ArtefactError(f"{folder}: the table of documents does not fit documents.jsonl; build the memory again")
        if not len(self) == len(self.ids) == len(self.content) == len(self.rows):
            raise ArtefactError(f"{folder}: documents, ids and hashes are not one to one; build the memory again")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def ids(self) -> list[str]:
        """The ids in row order."""
        try:
            ids = json.loads((self.folder / "ids.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{self.folder / 'ids.json'} cannot be read: {error}") from None
        if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
            raise ArtefactError(f"{self.folder / 'ids.json'} is not a list of ids; build the memory again")
        return ids

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of every id."""
        return {name: row for row, name in enumerate(self.ids)}

    def record(self, row: int) -> dict[str, Any]:
        """The JSON object of the document in `row`."""
        line = self._lines[int(self.offsets[row]) : int(self.offsets[row + 1])]
        try:
            record: dict[str, Any] = json.loads(bytes(line))
        except ValueError as error:
            raise ArtefactError(f"{self.folder}: document {row} cannot be read ({error}); build the memory again") from None
        return record

    def picture(self, start: int, length: int) -> bytes:
        """A stored PNG file."""
        return bytes(self._pictures[start : start + length])

    def __getitem__(self, row: int) -> Document:
        record = self.record(row)
        try:
            segments = tuple(map(self._segment, record["segments"]))
            document = Document(record["id"], segments, record["meta"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtefactError(f"{self.folder}: document {row} cannot be read ({error}); build the memory again") from None
        if document.id != self.ids[row]:
            raise ArtefactError(f"{self.folder}: row {row} holds {document.id!r}, expected {self.ids[row]!r}; build it again")
        return document

    def _segment(self, record: dict[str, Any]) -> Segment:
        if record["type"] == "text":
            return TextSegment(record["text"])
        codes = np.array(record["codes"], np.int64) if "codes" in record else None
        return ImageSegment(codes=codes, encoded=self.picture(*record["at"]) if "at" in record else None)


def content_hash(document: Document) -> tuple[int, int]:
    """64-bit hashes of the text and of the pictures (pixels, or codes), each 0 when there is none of it.

    Two documents with the same picture are duplicates, whatever file or words it came with.
    """
    text = int.from_bytes(hashlib.blake2b(document.text.encode(), digest_size=8).digest(), "big") if document.text else 0
    if not document.images:
        return text, 0
    total = hashlib.blake2b(digest_size=8)
    for segment in document.images:
        pixels = np.asarray(segment.load()) if segment.has_picture else np.asarray(segment.codes, np.int64)
        total.update(f"{pixels.shape} {pixels.dtype}".encode())
        total.update(np.ascontiguousarray(pixels).tobytes())
    return text, int.from_bytes(total.digest(), "big")


def pictures_of(document: Document) -> list[Image.Image]:
    """The pictures of a document as an encoder sees them; those that are codes alone are left out."""
    return [segment.load() for segment in document.images if segment.has_picture]


def _load_array(file: Path, dtype: np.dtype, ndim: int) -> np.ndarray:
    try:
        array = read_array(file)
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read: {error}; build the memory again") from None
    if array.dtype != dtype or array.ndim != ndim:
        raise ArtefactError(f"{file} holds {array.dtype} of shape {array.shape}, expected {dtype} with {ndim} axes")
    return array


def _map(file: Path) -> Sequence[int] | bytes | mmap.mmap:
    try:
        with open(file, "rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if file.stat().st_size else b""
    except OSError as error:
        raise ArtefactError(f"{file} cannot be read: {error.strerror}; build the memory again") from None
