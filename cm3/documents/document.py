"""The Document: one multimodal record, an ordered run of text and image segments.

Everything that enters cm3 becomes a `Document` (readers/), everything that leaves it is one again
(`cm3.pipeline`), and all stages between hand them on unchanged. The records are frozen; an image may be held
decoded (PIL), as a file, as encoded bytes, or as the codes of an image tokenizer, and is decoded when asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cm3.core.errors import InputError


@dataclass(frozen=True)
class TextSegment:
    """A run of text, any valid Unicode (no lone surrogates)."""

    text: str


@dataclass(frozen=True, eq=False)
class ImageSegment:
    """A picture, by at least one of four holders; `load()` takes the first that is there, in this order.

    image: decoded picture, any PIL mode.
    encoded: the bytes of a PNG, JPEG, WebP, GIF or BMP file.
    path: such a file on disk. A reader sets it beside `image` to say where the picture came from.
    codes: (h, w) int, the codes of an image tokenizer, each in [0, codebook_size).

    Segments compare by identity: comparing pixels is left to who means it.
    """

    image: Image.Image | None = None
    path: Path | None = None
    codes: np.ndarray | None = None
    encoded: bytes | None = None

    @property
    def has_picture(self) -> bool:
        """Whether there is a picture to load, not codes alone."""
        return any(holder is not None for holder in (self.image, self.encoded, self.path))

    def load(self) -> Image.Image:
        """Return the picture as 8-bit RGB PIL: upright, alpha laid on white.

        Raises `ImageError` when the file can't be decoded, `InputError` when there are only codes.
        """
        from cm3.documents.images import decode_image  # keeps the record free of the decoder

        for holder in (self.image, self.encoded, self.path):
            if holder is not None:
                return decode_image(holder)
        raise InputError(
            "this image segment holds no picture"
            + (" but only codes: decode them with the image tokenizer that made them" if self.codes is not None else "")
        )


Segment = TextSegment | ImageSegment


@dataclass(frozen=True)
class Document:
    """One record: `id` (unique within a data set), `segments` in reading order, `meta` (JSON-like facts about it).

    A sample with named pictures keeps the names in `meta["images"]`, in the order of its image segments.
    """

    id: str
    segments: tuple[Segment, ...]
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def pair(cls, id: str, text: str, image: Image.Image | Path, meta: Mapping[str, Any] | None = None) -> Document:
        """A caption followed by its picture (given decoded or as a file)."""
        picture = ImageSegment(path=image) if isinstance(image, Path) else ImageSegment(image=image)
        return cls(id, (TextSegment(text), picture), dict(meta or {}))

    @property
    def text(self) -> str:
        """All text, segments joined by newlines; empty when there is none."""
        return "\n".join(segment.text for segment in self.segments if isinstance(segment, TextSegment))

    @property
    def images(self) -> tuple[ImageSegment, ...]:
        """The image segments in order."""
        return tuple(segment for segment in self.segments if isinstance(segment, ImageSegment))


@dataclass(frozen=True)
class Neighbor:
    """A retrieved document: `score` (higher is nearer) and `rank` (0 is the nearest)."""

    document: Document
    score: float
    rank: int
