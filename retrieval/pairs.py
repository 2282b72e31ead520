"""Text and picture pairs for contrastive training: read once, framed for the encoder, kept as uint8 and token ids.

A document with text and at least one picture gives one pair: all of its text with its first picture. Documents that lack one
of them are passed over and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from cm3.core.errors import InputError
from cm3.documents.document import Document
from retrieval.encoders.preprocessing import Preprocessing


@dataclass(frozen=True)
class Pairs:
    """N pairs.

    frames (N, Y, X, 3) uint8: resized and cropped pictures. image_keys, text_keys (N,) int64: equal for equal contents.
    passed_over: how many documents were no pair.
    """

    ids: list[str]
    texts: list[str]
    frames: np.ndarray
    image_keys: np.ndarray
    text_keys: np.ndarray
    passed_over: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Pairs:
        """The pairs of `rows`, in that order."""
        names, texts = [self.ids[row] for row in rows], [self.texts[row] for row in rows]
        return Pairs(names, texts, self.frames[rows], self.image_keys[rows], self.text_keys[rows])

    def fingerprint(self) -> str:
        """SHA-256 (hex) over pictures and texts in their order: equal for equal training data, wherever it came from."""
        return hashlib.sha256(self.image_keys.tobytes() + self.text_keys.tobytes()).hexdigest()


def collect_pairs(documents: Iterable[Document], preprocessing: Preprocessing) -> Pairs:
    """The pairs among `documents`, in their order. Raises `InputError` when there are fewer than two."""
    ids, texts, frames, passed_over = list[str](), list[str](), list[np.ndarray](), 0
    for document in documents:
        if document.text.strip() and document.images:
            ids.append(document.id)
            texts.append(document.text)
            frames.append(preprocessing.frame(document.images[0].load()))
        else:
            passed_over += 1
    if len(ids) < 2:
        raise InputError(
            f"an encoder learns from pairs of a picture and a text, of which {len(ids)} were found among "
            f"{len(ids) + passed_over} documents; give at least 2 (thousands to be useful), or use a ready encoder"
        )
    stacked = np.stack(frames)  # (N, Y, X, 3)
    keys = np.array([_key(frame.tobytes()) for frame in stacked]), np.array([_key(text.encode()) for text in texts])
    return Pairs(ids, texts, stacked, *keys, passed_over)


def _key(content: bytes) -> int:
    """A 63-bit hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
