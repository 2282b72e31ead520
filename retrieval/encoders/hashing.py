"""An encoder without weights: hashed words for texts, a thumbnail for pictures. Deterministic on every machine.

For tests, and as a floor to compare trained encoders with: texts near texts that share words, pictures near pictures that
share colors in the same places. The two halves of a vector are separate, so a text is never near a picture.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from cm3.core.errors import ArtefactError
from cm3.documents.images import decode_image

_WORD = re.compile(r"\w+")
_THUMBNAIL = 4


class HashingEncoder:
    """Fulfils `Encoder`: `text_width` hashed features of words and word pairs, then 48 features of a 4×4 thumbnail."""

    def __init__(self, text_width: int = 208) -> None:
        if text_width < 1:
            raise ArtefactError(f"a hashing encoder has text_width {text_width}, expected at least 1")
        self.text_width = text_width
        self.kind = "hashing"
        self.width = text_width + _THUMBNAIL * _THUMBNAIL * 3
        self.fingerprint = hashlib.sha256(f"hashing-1 {text_width}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write config.json, all that this encoder is."""
        settings = {"model_type": "hashing", "text_width": self.text_width}
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → (N, E) float32, rows of length 1; the picture half is zero."""
        vectors = np.zeros((len(texts), self.width), np.float32)  # (N, E)
        for row, text in enumerate(texts):
            words = _WORD.findall(text.lower())
            for feature in [*words, *map(" ".join, pairwise(words)), "<text>"]:
                digest = hashlib.blake2b(feature.encode("utf-8", "replace"), digest_size=8).digest()
                slot = int.from_bytes(digest[:6], "big") % self.text_width
                vectors[row, slot] += 1.0 if digest[6] & 1 else -1.0
        return _unit_rows(vectors, fallback=0)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Pictures → (N, E) float32, rows of length 1; the text half is zero."""
        vectors = np.zeros((len(images), self.width), np.float32)  # (N, E)
        for row, image in enumerate(images):
            small = decode_image(image).resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
            vectors[row, self.text_width :] = np.asarray(small, np.float32).ravel() / 255 - 0.45
        return _unit_rows(vectors, fallback=self.text_width)


def load_hashing(folder: Path, device: str = "cpu") -> HashingEncoder:
    """Read the width from config.json; `device` is taken for uniformity, everything runs in NumPy. Raises `ArtefactError`."""
    try:
        return HashingEncoder(int(json.loads((folder / "config.json").read_text("utf-8"))["text_width"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{folder} cannot be loaded as a hashing encoder: {error}") from None


def _unit_rows(vectors: np.ndarray, fallback: int) -> np.ndarray:
    """Rows scaled to length 1; a row of zeros points along axis `fallback`."""
    vectors[~vectors.any(axis=1), fallback] = 1.0
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
