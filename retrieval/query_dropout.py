"""Query dropout: a share of a query is removed, so that its neighbors are related and not the same (RA-CM3, CM3Leon: 20 %)."""

from __future__ import annotations

import numpy as np
from PIL import Image

_GRID = 8


def drop_words(text: str, rate: float, rng: np.random.Generator) -> str:
    """`text` without each word with probability `rate`; one word is always kept."""
    words = text.split()
    if not words or rate == 0:
        return text
    kept = rng.random(len(words)) >= rate
    if not kept.any():
        kept[int(rng.integers(len(words)))] = True
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


def drop_cells(image: Image.Image, rate: float, rng: np.random.Generator) -> Image.Image:
    """`image` (RGB) with each cell of an 8×8 grid painted in the mean color with probability `rate`; one cell is always kept."""
    if rate == 0:
        return image
    pixels = np.array(image.convert("RGB"))  # (Y, X, 3)
    dropped = rng.random((_GRID, _GRID)) < rate
    if dropped.all():
        dropped[tuple(rng.integers(_GRID, size=2))] = False
    rows = np.arange(pixels.shape[0]) * _GRID // pixels.shape[0]
    columns = np.arange(pixels.shape[1]) * _GRID // pixels.shape[1]
    pixels[dropped[rows][:, columns]] = pixels.mean(axis=(0, 1)).round()
    return Image.fromarray(pixels)
