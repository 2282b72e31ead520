"""What an encoder is: texts and pictures in, unit vectors of one space out. Shape letters: N items, E embedding width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image


@runtime_checkable
class Encoder(Protocol):
    """Maps texts and pictures to vectors of length 1, so that an inner product is a cosine similarity.

    kind: its name in `ENCODERS`. width: E, the embedding width. fingerprint: SHA-256 (hex) that changes with anything that
    changes a vector; a memory bank remembers it and refuses to be searched with another encoder.
    """

    kind: str
    width: int
    fingerprint: str

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (N, E) float32, rows of length 1."""

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Pictures of any size and mode → (N, E) float32, rows of length 1."""
