"""The encoder without weights: deterministic, and near means alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cm3.core.errors import ArtefactError
from retrieval.encoders import Encoder, load_encoder
from retrieval.encoders.hashing import HashingEncoder, load_hashing


def test_saves_loads_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    HashingEncoder(100).save(tmp_path)
    loaded = load_encoder(tmp_path)
    assert isinstance(loaded, Encoder)
    assert loaded.width == 148
    assert loaded.fingerprint == HashingEncoder(100).fingerprint != HashingEncoder().fingerprint


def test_shared_words_bring_texts_together() -> None:
    a, b, c = HashingEncoder().encode_texts(["a red circle", "A red circle!", "several blue lines"])
    assert a @ b > 0.99
    assert a @ c < 0.5


def test_shared_colors_bring_pictures_together() -> None:
    red, dark_red, blue = (Image.new("RGB", (9, 7), color) for color in ((250, 0, 0), (200, 0, 0), (0, 0, 250)))
    a, b, c = HashingEncoder().encode_images([red, dark_red, blue])
    assert a @ b > 0.9
    assert a @ c < 0.5


def test_vectors_have_length_one_whatever_comes() -> None:
    encoder = HashingEncoder()
    vectors = np.concatenate([encoder.encode_texts(["", "!!", "x", "\ud800"]), encoder.encode_images([Image.new("L", (1, 1))])])
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


def test_the_vector_of_a_text_stays_what_it_was() -> None:
    """The fingerprint promises this across versions and machines."""
    vector = HashingEncoder(8).encode_texts(["red red circle"])[0]
    slots = np.flatnonzero(vector).tolist()
    assert slots == [1, 2, 4, 6]
    assert np.allclose(
        vector[slots], [0.6324560046195984, -0.6324560046195984, -0.3162280023097992, -0.3162280023097992], atol=1e-5
    )


@pytest.mark.parametrize("content", ["{}", '{"text_width": "wide"}', '{"text_width": 0}'])
def test_an_unusable_folder_is_an_artefact_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ArtefactError, match="hashing encoder"):
        load_hashing(tmp_path)
