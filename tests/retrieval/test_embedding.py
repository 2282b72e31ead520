"""The vector of a document: the renormalized mean of its parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from cm3.core.errors import ArtefactError, InputError
from cm3.documents.document import Document, ImageSegment, TextSegment
from retrieval.embedding import embed_documents, unit_rows
from retrieval.encoders.hashing import HashingEncoder

ENCODER = HashingEncoder()
RED, BLUE = Image.new("RGB", (8, 8), (250, 10, 10)), Image.new("RGB", (8, 8), (10, 10, 250))


def test_text_and_picture_count_alike() -> None:
    vector = embed_documents([Document.pair("a", "red", RED)], ENCODER)[0]
    mean = (ENCODER.encode_texts(["red"])[0] + ENCODER.encode_images([RED])[0]) / 2
    assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_one_part_alone_is_its_own_vector() -> None:
    text, image = Document("t", (TextSegment("red"),)), Document("i", (ImageSegment(image=RED),))
    vectors = embed_documents([text, image], ENCODER)
    assert np.allclose(vectors[0], ENCODER.encode_texts(["red"])[0], atol=1e-6)
    assert np.allclose(vectors[1], ENCODER.encode_images([RED])[0], atol=1e-6)


def test_several_pictures_count_as_one_part() -> None:
    both = Document("a", (TextSegment("red"), ImageSegment(image=RED), ImageSegment(image=BLUE)))
    pictures = unit_rows(ENCODER.encode_images([RED, BLUE]).mean(axis=0, keepdims=True))
    mean = unit_rows(ENCODER.encode_texts(["red"]) + pictures)
    assert np.allclose(embed_documents([both], ENCODER), mean, atol=1e-6)


def test_neither_part_is_an_input_error_with_the_id() -> None:
    with pytest.raises(InputError, match="'empty'"):
        embed_documents([Document.pair("a", "red", RED), Document("empty", (TextSegment("  "),))], ENCODER)


class Damaged(HashingEncoder):
    """Gives NaN for the second text."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        vectors = super().encode_texts(texts)
        vectors[1:, 0] = np.nan
        return vectors


def test_nan_names_the_document() -> None:
    with pytest.raises(ArtefactError, match="'second'"):
        embed_documents([Document.pair("first", "red", RED), Document.pair("second", "blue", BLUE)], Damaged())
