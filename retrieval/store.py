"""Documents on disk beside their vectors: written once in order, read one at a time from memory-mapped files.

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
import io
import json
import mmap
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from cm3.core.errors import ArtefactError, InputError
from cm3.documents.document import Document, ImageSegment, Segment, TextSegment

_PNG_LEVEL = 4


class DocumentWriter:
    """Appends documents to a folder; `finish` completes it. Use it inside the block of an artefact being written."""

    def __init__(self, folder: Path, max_image_side: int | None = None) -> None:
        self.folder, self.max_image_side = folder, max_image_side
        self._lines: BinaryIO = open(folder / "documents.jsonl", "wb")  # noqa: SIM115 - closed by `finish`
        self._pictures: BinaryIO = open(folder / "pictures.bin", "wb")  # noqa: SIM115
        self._offsets, self._ids, self._content = [0], dict[str, None](), list[tuple[int, int]]()

    def add(self, document: Document) -> None:
        """Append one document. Raises `InputError` if its id is already there or its meta is no JSON."""
        segments = [self._segment(segment) for segment in document.segments]
        record = {"id": document.id, "segments": segments, "meta": dict(document.meta)}
        try:
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise InputError(f"document {document.id!r} cannot be stored: {error}; meta must hold JSON values") from None
        self._append(document.id, line, content_hash(document))

    def take_over(self, store: DocumentStore, row: int) -> None:
        """Append a stored document as it is, its pictures byte by byte. Raises `InputError` if its id is already there."""
        record = store.record(row)
        for segment in record["segments"]:
            if "at" in segment:
                segment["at"] = self._append_picture(store.picture(*segment["at"]))
        text, pixels = store.content[row].tolist()
        self._append(record["id"], json.dumps(record, ensure_ascii=False).encode() + b"\n", (text, pixels))

    def finish(self) -> None:
        """Close the files and write the tables."""
        self.close()
        np.save(self.folder / "offsets.npy", np.array(self._offsets, np.int64))
        np.save(self.folder / "content.npy", np.array(self._content, np.uint64).reshape(-1, 2))
        (self.folder / "ids.json").write_text(json.dumps(list(self._ids), ensure_ascii=False), "utf-8")

    def close(self) -> None:
        """Close the open files; also right after a failure."""
        self._lines.close()
        self._pictures.close()

    def _segment(self, segment: Segment) -> dict[str, Any]:
        if isinstance(segment, TextSegment):
            return {"type": "text", "text": segment.text}
        codes = {} if segment.codes is None else {"codes": segment.codes.tolist()}
        if codes and _only_codes(segment):
            return {"type": "image", **codes}
        image = segment.load()
        if self.max_image_side is not None:
            image.thumbnail((self.max_image_side, self.max_image_side), Image.Resampling.BICUBIC)
        image.save(stream := io.BytesIO(), "PNG", compress_level=_PNG_LEVEL)
        return {"type": "image", "at": self._append_picture(stream.getvalue()), **codes}

    def _append_picture(self, encoded: bytes) -> list[int]:
        start = self._pictures.tell()
        self._pictures.write(encoded)
        return [start, len(encoded)]

    def _append(self, id: str, line: bytes, content: tuple[int, int]) -> None:
        if id in self._ids:
            raise InputError(f"two documents have the id {id!r}; ids must be unique within a memory")
        self._lines.write(line)
        self._offsets.append(self._offsets[-1] + len(line))
        self._ids[id] = None
        self._content.append(content)


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
        pixels = np.asarray(segment.codes, np.int64) if _only_codes(segment) else np.asarray(segment.load())
        total.update(f"{pixels.shape} {pixels.dtype}".encode())
        total.update(np.ascontiguousarray(pixels).tobytes())
    return text, int.from_bytes(total.digest(), "big")


def _only_codes(segment: ImageSegment) -> bool:
    """Whether there is no picture to show."""
    return segment.image is None and segment.encoded is None and segment.path is None


def _load_array(file: Path, dtype: np.dtype, ndim: int) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, allow_pickle=False)
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
