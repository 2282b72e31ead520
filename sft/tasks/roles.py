"""What tasks take out of documents: the caption, the pictures, the questions; a missing part is one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from cm3.core.errors import InputError
from cm3.documents.document import Document, ImageSegment

Item = TypeVar("Item")


@dataclass(frozen=True)
class AskedQuestion:
    """A question, its answer, and the explanation that leads to it (empty: none)."""

    question: str
    answer: str
    explanation: str = ""


def caption(document: Document, rng: np.random.Generator) -> str:
    """A caption of the document: one of `meta["captions"]` if there are any, otherwise its text."""
    captions = document.meta.get("captions")
    text = str(choose(captions, rng)) if isinstance(captions, Sequence) and captions else document.text
    if not text.strip():
        raise InputError(f"document {document.id!r} has no caption; this task needs a picture with a text")
    return text


def image(document: Document, index: int = 0, role: str = "picture") -> ImageSegment:
    """The picture at `index` of the document; `role` is what messages call it."""
    if len(document.images) <= index:
        raise InputError(f"document {document.id!r} has {len(document.images)} pictures and no {role}")
    return document.images[index]


def questions(document: Document) -> list[AskedQuestion]:
    """All of `meta["questions"]`."""
    listed = document.meta.get("questions")
    if not isinstance(listed, Sequence) or not listed:
        raise InputError(f"document {document.id!r} has no questions; expected meta['questions'] = [{{question, answer}}]")
    return [_question(item, document.id) for item in listed]


def choose(items: Sequence[Item], rng: np.random.Generator) -> Item:
    """One of `items`, all equally likely."""
    return items[0] if len(items) == 1 else items[int(rng.integers(len(items)))]


def _question(item: object, id: str) -> AskedQuestion:
    if isinstance(item, Mapping) and "question" in item and "answer" in item:
        return AskedQuestion(str(item["question"]), str(item["answer"]), str(item.get("explanation", "")))
    raise InputError(f"document {id!r} has a question that is no object with 'question' and 'answer': {item!r:.80}")
