"""Questions about pictures.

{"image": "a.png", "question": "how many?", "answer": "two"}
{"image": "a.png", "questions": [{"question": "…", "answer": "…"}, …]}
KEY.png + KEY.json with "question" and "answer", or "questions", in a tar or a folder

A question may have an "explanation" that leads to its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cm3.documents.document import Document
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import ImageLoader, ReadOptions, Record
from cm3.documents.texts import check_text
from sft.formats.arranging import FieldError, arranged

_FIELDS = ("question", "answer", "explanation")
_MAX_TEXT_BYTES = ReadOptions().max_text_bytes


def find_records(source: Path | str, options: ReadOptions) -> Iterator[Record]:
    """The pictures of `source` with their questions."""
    return arranged(source, options, arrange)


def arrange(document: Document, load: ImageLoader) -> Document:
    """The picture alone; all questions in `meta["questions"]`. Raises `FieldError` for what is missing or malformed."""
    if len(document.images) != 1:
        reason = RejectReason.MISSING_IMAGE if not document.images else RejectReason.BAD_RECORD
        raise FieldError("image", reason, f"questions need one picture, this record has {len(document.images)}")
    asked = [_question(item, where) for item, where in _listed(document.meta)]
    return Document(document.id, document.images, {**document.meta, "questions": asked})


def _listed(meta: Mapping[str, Any]) -> list[tuple[Any, str]]:
    """Each question as it stands, with the name of its field."""
    if "questions" not in meta:
        return [({name: meta[name] for name in _FIELDS if name in meta}, "")]
    listed = meta["questions"]
    if not isinstance(listed, list) or not listed:
        raise FieldError("questions", RejectReason.BAD_RECORD, "expected a list of objects with 'question' and 'answer'")
    return [(item, f"questions[{index}].") for index, item in enumerate(listed)]


def _question(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise FieldError(where.rstrip("."), RejectReason.BAD_RECORD, f"expected an object, got {type(item).__name__}")
    for name in ("question", "answer"):
        if name not in item:
            raise FieldError(where + name, RejectReason.MISSING_TEXT, "is missing")
    for name in _FIELDS:
        try:
            if name in item:
                check_text(item[name], _MAX_TEXT_BYTES)
        except RecordError as error:
            raise FieldError(where + name, error.reason, str(error)) from None
    return dict(item)
