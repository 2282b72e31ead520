"""What the formats share: wrapping a container's records, and errors that name the field at fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from cm3.documents.document import Document
from cm3.documents.readers import READERS, detect_format
from cm3.documents.reasons import ImageError, RecordError, RejectReason
from cm3.documents.records import ImageLoader, ReadOptions, Record, image_segment

Arrange = Callable[[Document, ImageLoader], Document]

_TEXT_REASONS = (RejectReason.MISSING_TEXT, RejectReason.EMPTY_TEXT, RejectReason.TEXT_NOT_UTF8, RejectReason.TEXT_TOO_LONG)
_KEY_REASONS = (RejectReason.DUPLICATE_KEY, RejectReason.KEY_TOO_LONG, RejectReason.UNSAFE_KEY)


class FieldError(RecordError):
    """One record cannot be used because of one of its fields."""

    def __init__(self, field: str, reason: RejectReason, message: str) -> None:
        super().__init__(reason, f"{field}: {message}")
        self.field = field


def field_of(error: RecordError) -> str:
    """The field that an error is about: "image", "text", "id", one that a format names, or "" for the whole record."""
    if isinstance(error, FieldError):
        return error.field
    if isinstance(error, ImageError):
        return "image"
    if error.reason in _TEXT_REASONS:
        return "text"
    return "id" if error.reason in _KEY_REASONS else ""


def arranged(source: Path | str, options: ReadOptions, arrange: Arrange) -> Iterator[Record]:
    """The records of `source`, whatever its container, each built and then arranged.

    `arrange` gets the document and a loader for pictures that the document names by a path (relative to its file).
    """
    for record in READERS.get(detect_format(source))(source, options):
        yield Record(record.file, record.where, partial(_build, record, options, arrange))


def _build(record: Record, options: ReadOptions, arrange: Arrange) -> Document:
    folder = Path(record.file) if Path(record.file).is_dir() else Path(record.file).parent
    return arrange(record.build(), lambda name: image_segment(folder / name, options))
