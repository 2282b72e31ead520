"""What a reader is: a function from a source to `Record`s, each of which can build one Document or say why not.

A reader only finds records (lines, samples, files); building is left to the one loop in `readers/__init__.py`, so that
accounting, duplicate keys and requirements are the same for every format. This module also holds the step all formats
share: the JSON form of a document, and a picture behind a name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cm3.documents.document import Document, ImageSegment, Segment, TextSegment
from cm3.documents.images import DEFAULT_LIMITS, DecodeLimits, check_header, decode_image
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.texts import check_key, check_text

IMAGE_KEYS = ("image", "images", "file_name", "path")
TEXT_KEYS = ("text", "caption")


@dataclass(frozen=True)
class ReadOptions:
    """How to read.

    decode: True decodes every picture while reading (all of its faults are found and counted); False checks headers
        only and leaves files and encoded bytes in the segments, for sources larger than memory.
    require_text, require_image: reject documents that lack one (the default also takes bare pictures and bare text).
    limits, max_text_bytes, max_record_bytes: what one picture, text, JSON record may cost.
    keep_truncated: take the whole records of a cut-off tar, and count the cut as one rejection, instead of refusing it.
    table, image_column, text_column: which index table and columns the `table` format takes (default: found by name).
    """

    decode: bool = True
    require_text: bool = False
    require_image: bool = False
    limits: DecodeLimits = DEFAULT_LIMITS
    max_text_bytes: int = 1024 * 1024
    max_record_bytes: int = 16 * 1024 * 1024
    keep_truncated: bool = False
    table: str | None = None
    image_column: str | None = None
    text_column: str | None = None


@dataclass(frozen=True)
class Record:
    """One found record: the file and the place in it, and `build`, which raises `RecordError` when it is unusable."""

    file: str
    where: str
    build: Callable[[], Document]


ImageLoader = Callable[[str], ImageSegment]


def image_segment(source: bytes | Path, options: ReadOptions) -> ImageSegment:
    """The segment for encoded bytes or a file, decoded or only checked as `options` say. Raises `ImageError`."""
    path, encoded = (source, None) if isinstance(source, Path) else (None, source)
    if options.decode:
        return ImageSegment(image=decode_image(source, options.limits), path=path)
    check_header(source, options.limits)
    return ImageSegment(path=path, encoded=encoded)


def document_from_json(value: Any, default_id: str, load: ImageLoader, options: ReadOptions) -> Document:
    """The document in a parsed JSON object, in the full form or the shorthand of one pair (see docs of formats).

    `load` turns the name of a picture into its segment. Raises `RecordError`.
    """
    if not isinstance(value, Mapping):
        raise RecordError(RejectReason.BAD_RECORD, f"the record is a JSON {type(value).__name__}, expected an object")
    fields = dict(value)
    key = check_key(fields.pop("id", default_id))
    meta = fields.pop("meta", {})
    if not isinstance(meta, Mapping):
        raise RecordError(RejectReason.BAD_RECORD, f"'meta' is of type {type(meta).__name__}, expected an object")
    if "segments" in fields:
        segments = segments_from_json(fields.pop("segments"), load, options)
    else:
        segments = _shorthand_segments(fields, load, options)
    return Document(key, segments, {**fields, **meta})


def segments_from_json(value: Any, load: ImageLoader, options: ReadOptions) -> tuple[Segment, ...]:
    """Segments from a list of {"type": "text", "text"} and {"type": "image", "path" or "codes"} objects."""
    if not isinstance(value, list):
        raise RecordError(RejectReason.BAD_RECORD, f"'segments' is of type {type(value).__name__}, expected a list")
    return tuple(_segment_from_json(item, load, options) for item in value)


def segment_to_json(segment: Segment, path: str | None) -> dict[str, Any]:
    """The JSON form of a segment; `path` is where its picture was put (None for codes and text)."""
    if isinstance(segment, TextSegment):
        return {"type": "text", "text": segment.text}
    if path is None and segment.codes is not None:
        return {"type": "image", "codes": segment.codes.tolist()}
    return {"type": "image", "path": path}


def _segment_from_json(item: Any, load: ImageLoader, options: ReadOptions) -> Segment:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind == "text":
        return TextSegment(check_text(item.get("text"), options.max_text_bytes))
    if kind == "image" and "codes" in item:
        return ImageSegment(codes=_codes_from_json(item["codes"]))
    if kind == "image":
        return load(_image_name(item.get("path")))
    raise RecordError(RejectReason.BAD_RECORD, "a segment must be an object of type 'text' or 'image'")


def _codes_from_json(value: Any) -> np.ndarray:
    rows = value if isinstance(value, list) and value and all(isinstance(row, list) for row in value) else None
    if rows is None or {len(row) for row in rows} != {len(rows[0])} or not rows[0]:
        raise RecordError(RejectReason.BAD_RECORD, "'codes' must be a list of rows of equal length")
    if not all(type(code) is int and 0 <= code < 2**31 for row in rows for code in row):
        raise RecordError(RejectReason.BAD_RECORD, "'codes' must hold integers from 0 up")
    return np.array(rows, dtype=np.int64)  # (h, w)


def _shorthand_segments(fields: dict[str, Any], load: ImageLoader, options: ReadOptions) -> tuple[Segment, ...]:
    """Take the text and picture out of `fields` (what remains is meta): text first, then pictures in order."""
    segments: list[Segment] = []
    text = _take_first(fields, TEXT_KEYS)
    if text is not None:
        segments.append(TextSegment(check_text(text, options.max_text_bytes)))
    images = _take_first(fields, IMAGE_KEYS)
    if images is not None:
        names = images if isinstance(images, list) else [images]
        segments.extend(load(_image_name(name)) for name in names)
    return tuple(segments)


def _take_first(fields: dict[str, Any], keys: tuple[str, ...]) -> Any:
    found = next((key for key in keys if fields.get(key) is not None), None)
    return None if found is None else fields.pop(found)


def _image_name(name: Any) -> str:
    if not isinstance(name, str) or not name or "\0" in name:
        raise RecordError(RejectReason.BAD_RECORD, "the name of a picture must be a string with something in it")
    return name
