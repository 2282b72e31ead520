"""Writing documents beside their vectors: appended one by one, and continued where a process died.

documents.jsonl and pictures.bin grow as `retrieval.store` reads them. Until `finish` writes the tables, what they will hold
stands in `rows.bin`, one record per document, which is all that continuing needs.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from PIL import Image

from cm3.core.errors import ArtefactError, InputError
from cm3.documents.document import Document, Segment, TextSegment
from retrieval.store import DocumentStore, content_hash

ROWS = "rows.bin"
_ROW = np.dtype([("lines_end", "<i8"), ("pictures_end", "<i8"), ("text", "<u8"), ("pixels", "<u8")])
_PNG_LEVEL = 4

Content = tuple[int, int]
"""The hashes of a document's text and pictures; see `content_hash`."""


class DocumentWriter:
    """Appends documents to a folder, after the first `count` that are already there; `finish` completes it.

    max_image_side: larger pictures are stored reduced. Raises `ArtefactError` when fewer than `count` are there.
    """

    def __init__(self, folder: Path, max_image_side: int | None = None, count: int = 0) -> None:
        self.folder, self.max_image_side = folder, max_image_side
        mode: Literal["r+b", "w+b"] = "r+b" if count else "w+b"
        self._lines: BinaryIO = open(folder / "documents.jsonl", mode)  # noqa: SIM115 - closed by `close`
        self._pictures: BinaryIO = open(folder / "pictures.bin", mode)  # noqa: SIM115
        self._rows: BinaryIO = open(folder / ROWS, mode)  # noqa: SIM115
        self._names, self._ids = list[str](), set[str]()
        self.cut(count)
        if count:
            with open(folder / "documents.jsonl", "rb") as lines:
                self._names = [json.loads(line)["id"] for line in lines]
            self._ids = set(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def stored(self, start: int, count: int) -> list[tuple[str, Content]]:
        """The ids and content hashes of `count` documents from row `start` on."""
        self._rows.seek(start * _ROW.itemsize)
        found = np.frombuffer(self._rows.read(count * _ROW.itemsize), _ROW)
        self._rows.seek(0, os.SEEK_END)  # where the next one is appended
        hashes = zip(found["text"].tolist(), found["pixels"].tolist(), strict=True)
        return list(zip(self._names[start : start + count], hashes, strict=True))

    def add(self, document: Document) -> None:
        """Append one document. Raises `InputError` if its id is already there or its meta is no JSON."""
        self._require_new(document.id)
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
        self._require_new(record["id"])
        for segment in record["segments"]:
            if "at" in segment:
                segment["at"] = self._append_picture(store.picture(*segment["at"]))
        text, pixels = store.content[row].tolist()
        self._append(record["id"], json.dumps(record, ensure_ascii=False).encode() + b"\n", (text, pixels))

    def cut(self, count: int) -> None:
        """Drop all documents but the first `count`, and whatever was written after them."""
        lines_end = pictures_end = 0
        if count:
            self._rows.seek((count - 1) * _ROW.itemsize)
            if len(last := self._rows.read(_ROW.itemsize)) < _ROW.itemsize:
                raise ArtefactError(f"{self.folder} holds fewer than {count} documents; remove it to start anew")
            lines_end, pictures_end = np.frombuffer(last, _ROW)[["lines_end", "pictures_end"]][0].item()
        for stream, end in ((self._lines, lines_end), (self._pictures, pictures_end), (self._rows, count * _ROW.itemsize)):
            stream.truncate(end)
            stream.seek(end)
        self._ids.difference_update(self._names[count:])
        del self._names[count:]

    def flush(self) -> None:
        """Have everything so far reach the disk."""
        for stream in (self._lines, self._pictures, self._rows):
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self) -> None:
        """Close the files and write the tables."""
        self.close()
        rows = np.fromfile(self.folder / ROWS, _ROW)
        np.save(self.folder / "offsets.npy", np.concatenate([np.zeros(1, np.int64), rows["lines_end"]]))
        np.save(self.folder / "content.npy", np.stack([rows["text"], rows["pixels"]], axis=1))  # (N, 2)
        (self.folder / "ids.json").write_text(json.dumps(self._names, ensure_ascii=False), "utf-8")

    def close(self) -> None:
        """Close the open files; also right after a failure."""
        for stream in (self._lines, self._pictures, self._rows):
            stream.close()

    def _segment(self, segment: Segment) -> dict[str, Any]:
        if isinstance(segment, TextSegment):
            return {"type": "text", "text": segment.text}
        codes = {} if segment.codes is None else {"codes": segment.codes.tolist()}
        if codes and not segment.has_picture:
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

    def _require_new(self, id: str) -> None:
        if id in self._ids:
            raise InputError(f"two documents have the id {id!r}; ids must be unique within a memory")

    def _append(self, id: str, line: bytes, content: Content) -> None:
        self._lines.write(line)
        self._rows.write(np.array([(self._lines.tell(), self._pictures.tell(), *content)], _ROW).tobytes())
        self._names.append(id)
        self._ids.add(id)
