"""Small scene documents with codes, and a document tokenizer whose image tokenizer needs no weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, vocab_for

GRID = (4, 4)
CODEBOOK = 64
CAPTIONS = ["a small red circle at the top left on a white background", "two squares on a black background"]
CORPUS = [*CAPTIONS, "describe", "how many circles are there?", "one two three", "make the circle green", "edit"] * 2


class MeanColor:
    """A picture of 4 × 4 flat cells ↔ codes: two bits for each of the red, green and blue level of a cell."""

    codebook_size, grid_shape, image_size = CODEBOOK, GRID, 8

    def preprocess(self, images):
        arrays = [np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.NEAREST), np.float32) for image in images]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) / 127.5 - 1

    def encode(self, pixels):
        levels = ((pixels[:, :, ::2, ::2] + 1) * 1.5).round().long()
        return levels[:, 0] * 16 + levels[:, 1] * 4 + levels[:, 2]

    def decode(self, codes):
        levels = torch.stack([codes // 16, codes // 4 % 4, codes % 4], 1).float()
        return (levels / 1.5 - 1).repeat_interleave(2, 2).repeat_interleave(2, 3)

    def postprocess(self, pixels):
        return [Image.fromarray(((p.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()) for p in pixels]


@pytest.fixture(scope="session")
def tokenizer() -> DocumentTokenizer:
    text = BPETextTokenizer.train(CORPUS, 320)
    return DocumentTokenizer(vocab_for(text, CODEBOOK, GRID), text, MeanColor())


def codes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CODEBOOK, GRID)


def picture(seed: int) -> Image.Image:
    """A picture whose codes are `codes(seed)`."""
    tokenizer = MeanColor()
    return tokenizer.postprocess(tokenizer.decode(torch.from_numpy(codes(seed))[None]))[0]


@pytest.fixture
def make_picture():
    return picture


@pytest.fixture
def make_codes():
    return codes


@pytest.fixture
def pair() -> Document:
    return Document("pair", (TextSegment(CAPTIONS[0]), ImageSegment(codes=codes(1))))


@pytest.fixture
def asked() -> Document:
    questions = [{"question": f"how many {n}?", "answer": n} for n in ("one", "two", "three", "circles")]
    return Document("asked", (ImageSegment(codes=codes(2)),), {"questions": questions})


@pytest.fixture
def edit() -> Document:
    segments = (ImageSegment(codes=codes(3)), TextSegment("make the circle green"), ImageSegment(codes=codes(4)))
    return Document("edit", segments, {"images": ["source", "target"]})
