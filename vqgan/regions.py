"""Regions of a picture that matter more: a weight map per document, from boxes or from a gray picture.

Make-A-Scene (arXiv:2203.13131) emphasizes faces and objects in the tokenizer's loss. Here any document says what matters in it:

    meta["regions"]     [{"box": [x0, y0, x1, y1], "strength": 0.5, "picture": 0}, …]: the box in pixels of the upright picture;
                        strength in [0, 1], 1 when left out; the number of the picture that is meant, 0 when left out
    meta["images"]      a picture named "regions" (WebDataset: KEY.image.png and KEY.regions.png) is no training picture but the
                        map of all others: black 0, white 1

A map goes through the same fitting as its picture. A pixel's error then counts 1 + (region_emphasis - 1) · strength.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cm3.documents.document import Document, ImageSegment
from cm3.documents.reasons import RecordError, RejectReason
from vqgan.config import PreprocessConfig
from vqgan.preprocessing import fit_map

MAP_NAME = "regions"


def training_images(document: Document) -> list[ImageSegment]:
    """The pictures of `document` that are more than codes and no weight map, in order."""
    named = zip(document.images, picture_names(document))
    return [segment for segment, name in named if name != MAP_NAME and segment.has_picture]


def picture_names(document: Document) -> list[Any]:
    """The name of every picture of `document`, None where it says none."""
    names = document.meta.get("images")
    count = len(document.images)
    return list(names) if isinstance(names, list) and len(names) == count else [None] * count


def region_map(document: Document, picture: int, size: tuple[int, int], fitted: int, config: PreprocessConfig) -> np.ndarray:
    """(fitted, fitted) uint8 strengths, 255 for 1, of training picture `picture`, `size` (width, height) before fitting.

    Raises `RecordError` when the document's regions make no sense.
    """
    drawn = np.zeros((size[1], size[0]), np.float32)
    for segment, name in zip(document.images, picture_names(document)):
        if name == MAP_NAME and segment.has_picture:
            given = segment.load().convert("L").resize(size, Image.Resampling.BOX)
            drawn = np.maximum(drawn, np.asarray(given, np.float32) / 255)
    for region in _regions(document):
        (left, top, right, bottom), strength, number = _parsed(region, document.id)
        if number == picture:
            part = drawn[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            np.maximum(part, strength, out=part)
    return np.rint(fit_map(Image.fromarray(drawn), fitted, config) * 255).astype(np.uint8)


def pixel_weights(maps: Tensor, emphasis: float) -> Tensor:
    """Strengths (B, Y, X) uint8 → weights (B, 1, Y, X) float32 in [1, emphasis]."""
    return (1 + (emphasis - 1) / 255 * maps.float())[:, None]


def _regions(document: Document) -> list[Any]:
    regions = document.meta.get("regions", [])
    if not isinstance(regions, list):
        raise _bad(document.id, "is no list")
    return regions


def _parsed(region: Any, key: str) -> tuple[list[int], float, int]:
    try:
        box = [round(side) for side in region["box"]]
        strength, number = float(region.get("strength", 1.0)), int(region.get("picture", 0))
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        raise _bad(key, f"holds {region!r:.80}") from None
    if len(box) != 4 or box[0] >= box[2] or box[1] >= box[3] or not 0 <= strength <= 1:
        raise _bad(key, f"holds {region!r:.80}")
    return box, strength, number


def _bad(key: str, what: str) -> RecordError:
    expected = 'expected [{"box": [x0, y0, x1, y1], "strength": 0 to 1}, …] with x0 < x1 and y0 < y1'
    return RecordError(RejectReason.BAD_RECORD, f"document {key:.80}: meta 'regions' {what}; {expected}")
