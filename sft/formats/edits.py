"""Edits: a picture, an instruction, the picture afterwards, and optionally a mask of what changes (white).

{"source": "a.png", "instruction": "make it red", "target": "b.png", "mask": "m.png"?}
{"images": ["a.png", "b.png"], "instruction": "…"}         source, then target
KEY.source.png + KEY.target.png [+ KEY.mask.png] + KEY.txt, or "instruction" in KEY.json, in a tar
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import ImageLoader, ReadOptions, Record
from cm3.documents.texts import check_text
from sft.formats.arranging import FieldError, arranged

ROLES = ("source", "target", "mask")
_MAX_TEXT_BYTES = ReadOptions().max_text_bytes


def find_records(source: Path | str, options: ReadOptions) -> Iterator[Record]:
    """The edits of `source`."""
    return arranged(source, options, arrange)


def arrange(document: Document, load: ImageLoader) -> Document:
    """Source, instruction, target and mask if there is one, in this order; `meta["images"]` names the pictures."""
    pictures = _named_pictures(document) or _loaded_pictures(document, load)
    for role in ROLES[:2]:
        if role not in pictures:
            raise FieldError(role, RejectReason.MISSING_IMAGE, "an edit needs a source and a target picture")
    instruction = TextSegment(_instruction(document))
    named = [role for role in ROLES if role in pictures]
    first, *rest = (pictures[role] for role in named)
    return Document(document.id, (first, instruction, *rest), {**document.meta, "images": named})


def _named_pictures(document: Document) -> dict[str, ImageSegment]:
    """The pictures that the container gave, by role: by their part names, or in the order of `ROLES`."""
    names = document.meta.get("images", ROLES[: len(document.images)])
    if not isinstance(names, list | tuple) or len(names) != len(document.images):
        raise FieldError("images", RejectReason.BAD_RECORD, f"names {names!r:.80} do not fit {len(document.images)} pictures")
    return dict(zip(names, document.images, strict=True))


def _loaded_pictures(document: Document, load: ImageLoader) -> dict[str, ImageSegment]:
    """The pictures that the record names by path under their roles."""
    pictures = {}
    for role in ROLES:
        name = document.meta.get(role)
        if name is None:
            continue
        if not isinstance(name, str) or not name or "\0" in name:
            raise FieldError(role, RejectReason.BAD_RECORD, "expected the path of a picture")
        try:
            pictures[role] = load(name)
        except RecordError as error:
            raise FieldError(role, error.reason, str(error)) from None
    return pictures


def _instruction(document: Document) -> str:
    text = document.text or document.meta.get("instruction")
    if text is None:
        raise FieldError("instruction", RejectReason.MISSING_TEXT, "an edit needs an instruction")
    try:
        return check_text(text, _MAX_TEXT_BYTES)
    except RecordError as error:
        raise FieldError("instruction", error.reason, str(error)) from None
