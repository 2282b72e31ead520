"""A plain folder: pictures at any depth, each with its caption in a file of the same name beside it.

    birds/robin.jpg + birds/robin.txt (or .caption, or .json)

A `.json` object becomes meta; its "text" or "caption" is the caption when there is no text file. A picture without
either is a document of one image. The id is the path below the folder without suffix, with "/" between parts; two pictures
that differ in suffix alone keep it. Hidden files are passed over.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cm3.core.storage import RUN_LOCK
from cm3.documents.document import Document, Segment, TextSegment
from cm3.documents.images import IMAGE_SUFFIXES
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import TEXT_KEYS, ReadOptions, Record, image_segment
from cm3.documents.texts import check_key, check_text, decode_caption, parse_json

CAPTION_SUFFIXES = (".txt", ".caption")


def find_records(source: Path | str, options: ReadOptions) -> Iterator[Record]:
    """One record per picture, in the order of their paths."""
    root = Path(source)
    pictures = [name for name in walk(root) if name.lower().endswith(IMAGE_SUFFIXES)]
    stems = Counter(os.path.splitext(name)[0] for name in pictures)
    for name in pictures:
        stem = os.path.splitext(name)[0]
        yield Record(str(root), name, partial(_build, root, name, stem if stems[stem] == 1 else name, options))


def walk(root: Path) -> list[str]:
    """The files below `root` as sorted relative paths with "/" between parts; hidden ones and places of runs left out."""
    names: list[str] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [
            name for name in subfolders if not (name.startswith(".") or os.path.exists(f"{folder}/{name}/{RUN_LOCK}"))
        ]
        prefix = Path(folder).relative_to(root).as_posix()
        names.extend(name if prefix == "." else f"{prefix}/{name}" for name in files if not name.startswith("."))
    return sorted(names)


def parse_meta(data: bytes | None, options: ReadOptions) -> dict[str, Any]:
    """The meta in the `.json` file beside a picture; empty without one. Raises `RecordError`."""
    if data is None:
        return {}
    value = parse_json(data, options.max_record_bytes)
    if not isinstance(value, dict):
        raise RecordError(RejectReason.BAD_RECORD, f"the .json file holds a {type(value).__name__}, expected an object")
    return value


def caption_segments(caption: bytes | None, meta: dict[str, Any], options: ReadOptions) -> list[Segment]:
    """The text segment, if any, from the text file, else from `meta` (out of which it is taken). Raises `RecordError`."""
    if caption is not None:
        return [TextSegment(decode_caption(caption, options.max_text_bytes))]
    key = next((key for key in TEXT_KEYS if meta.get(key) is not None), None)
    return [] if key is None else [TextSegment(check_text(meta.pop(key), options.max_text_bytes).strip())]


def _build(root: Path, name: str, key: str, options: ReadOptions) -> Document:
    check_key(key)
    path = root / name
    caption = next((data for suffix in CAPTION_SUFFIXES if (data := _read(path.with_suffix(suffix), options)) is not None), None)
    meta = parse_meta(_read(path.with_suffix(".json"), options), options)
    segments = caption_segments(caption, meta, options)
    return Document(key, (*segments, image_segment(path, options)), meta)


def _read(path: Path, options: ReadOptions) -> bytes | None:
    """The bytes of a side file (never more than a record may have, plus one), or None when there is none."""
    try:
        with open(path, "rb") as stream:
            return stream.read(options.max_record_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError(RejectReason.BAD_RECORD, f"{path} cannot be read: {error.strerror}") from None
