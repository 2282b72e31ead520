"""Pairs: a text and a picture, for text-to-image, captioning and infilling.

{"image": "a.png", "text" | "caption": "…"}                one caption
{"image": "a.png", "captions": ["…", "…"]}                 several; tasks draw one each time
a.png + a.txt in a folder; KEY.png + KEY.txt in a tar
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.reasons import RejectReason
from cm3.documents.records import ImageLoader, ReadOptions, Record
from cm3.documents.texts import check_text
from sft.formats.arranging import FieldError, arranged

_MAX_TEXT_BYTES = ReadOptions().max_text_bytes


def find_records(source: Path | str, options: ReadOptions) -> Iterator[Record]:
    """The pairs of `source`."""
    return arranged(source, options, arrange)


def arrange(document: Document, load: ImageLoader) -> Document:
    """Text first, then the one picture. Raises `FieldError` when one of them is missing or there are more pictures."""
    captions = _captions(document)
    if not captions:
        raise FieldError("text", RejectReason.MISSING_TEXT, "a pair needs a caption: 'text', 'caption' or 'captions'")
    if len(document.images) != 1:
        reason = RejectReason.MISSING_IMAGE if not document.images else RejectReason.BAD_RECORD
        raise FieldError("image", reason, f"a pair has one picture, this record has {len(document.images)}")
    segments: tuple[TextSegment | ImageSegment, ...] = (TextSegment(captions[0]), document.images[0])
    return Document(document.id, segments, document.meta)


def _captions(document: Document) -> list[str]:
    if document.text:
        return [document.text]
    listed = document.meta.get("captions", [])
    if not isinstance(listed, list):
        raise FieldError("captions", RejectReason.BAD_RECORD, f"expected a list of texts, got {type(listed).__name__}")
    return [check_text(text, _MAX_TEXT_BYTES) for text in listed]
