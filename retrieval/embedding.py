"""Documents to one vector each: the mean of the unit vectors of its text and its pictures, scaled back to length 1.

As in CM3Leon and RA-CM3 (arXiv:2309.02591, arXiv:2211.12561): the text part and the image part are encoded apart and averaged;
a document with one of them only has that one's vector. Several pictures are first averaged among themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cm3.core.errors import ArtefactError, InputError
from cm3.documents.document import Document
from retrieval.encoders.protocol import Encoder
from retrieval.store import pictures_of


def embed_documents(documents: Sequence[Document], encoder: Encoder) -> np.ndarray:
    """Documents with text, pictures or both → (N, E) float32, rows of length 1; pictures of codes alone do not count.

    Raises `InputError` naming a document with neither, and `ArtefactError` when the encoder yields NaN or infinity.
    """
    pictures = [pictures_of(document) for document in documents]
    return embed_parts([document.text for document in documents], pictures, encoder, [document.id for document in documents])


def embed_parts(
    texts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], encoder: Encoder, names: Sequence[str]
) -> np.ndarray:
    """Like `embed_documents`, from the parts: item i is `texts[i]` ("" for none) and `pictures[i]`, called `names[i]`."""
    text_rows = [row for row, text in enumerate(texts) if text.strip()]
    image_rows = [row for row, group in enumerate(pictures) for _ in group]
    if missing := set(range(len(texts))) - set(text_rows) - set(image_rows):
        name = names[min(missing)]
        raise InputError(f"document {name!r} has neither text nor a picture to encode; give it one of them, or leave it out")
    vectors = np.zeros((len(texts), encoder.width), np.float32)  # (N, E)
    for rows, found in (
        (text_rows, encoder.encode_texts([texts[row] for row in text_rows])),
        (image_rows, encoder.encode_images([image for group in pictures for image in group])),
    ):
        part = np.zeros_like(vectors)
        np.add.at(part, rows, found)
        vectors += unit_rows(part)
    if bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
        raise ArtefactError(f"the encoder gave document {names[bad[0]]!r} a vector with NaN or infinity; its weights are damaged")
    return unit_rows(vectors)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """(N, E) with every row scaled to length 1; rows of zeros stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return unit
