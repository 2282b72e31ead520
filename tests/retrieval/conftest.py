"""Small documents, encoders and banks that the tests of retrieval share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from PIL import Image

import retrieval
from cm3.documents.document import Document
from retrieval.config import BuildConfig, TrainEncoderConfig
from retrieval.encoders.presets import EncoderShape, TowerShape
from retrieval.encoders.text import train_text_tokenizer
from retrieval.pair_model import new_clip, save_encoder

COLORS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
PLACES = {"left": (0, 0, 8, 24), "right": (16, 0, 24, 24), "top": (0, 0, 24, 8), "bottom": (0, 16, 24, 24)}


@pytest.fixture(autouse=True)
def _one_faiss_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


def thirds(color: str, other: str, place: str) -> Image.Image:
    """A 24×24 picture in `other`, one third of it in `color`."""
    picture = Image.new("RGB", (24, 24), COLORS[other])
    picture.paste(COLORS[color], PLACES[place])
    return picture


def all_pairs() -> list[Document]:
    """The 48 pictures of two colors, with their captions."""
    triples = [(c, o, p) for c in COLORS for o in COLORS if o != c for p in PLACES]
    return [Document.pair(f"{c}-{o}-{p}", f"{c} at the {p} of {o}", thirds(c, o, p), {"place": p}) for c, o, p in triples]


@pytest.fixture(scope="session")
def pairs() -> list[Document]:
    return all_pairs()


@pytest.fixture(scope="session")
def tiny_shape() -> EncoderShape:
    tower = TowerShape(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    return EncoderShape(
        image_size=24, patch_size=12, max_text_length=16, vocab_size=320, projection_dim=24, vision=tower, text=tower
    )


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, tiny_shape: EncoderShape) -> Path:
    """An untrained CLIP folder in the layout of transformers, without a manifest of ours."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = train_text_tokenizer([document.text for document in all_pairs()], tiny_shape.vocab_size)
    save_encoder(new_clip(tokenizer, TrainEncoderConfig(), tiny_shape), tokenizer, tiny_shape, folder)
    return folder


@pytest.fixture(scope="session")
def hashing_bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bank of all pairs by hashed features."""
    out = tmp_path_factory.mktemp("banks") / "hashing"
    retrieval.build(all_pairs(), out, "hashing")
    return out


@pytest.fixture(scope="session")
def clip_bank(tmp_path_factory: pytest.TempPathFactory, clip_folder: Path) -> Path:
    """The bank of all pairs by the untrained CLIP, with its own copy of it."""
    out = tmp_path_factory.mktemp("banks") / "clip"
    retrieval.build(all_pairs(), out, clip_folder, BuildConfig(batch_size=16))
    return out


@pytest.fixture
def unit_vectors() -> np.ndarray:
    """(700, 16) float32 rows of length 1."""
    vectors = np.random.default_rng(5).normal(size=(700, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
