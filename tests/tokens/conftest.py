"""A tiny trained text tokenizer, its vocabulary, and an image tokenizer whose codes can be checked by eye."""

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.tokens import BPETextTokenizer, DocumentTokenizer, Vocab, vocab_for

CORPUS = ["a large red circle left of a blue square", "two green circles, one blue triangle.", "how many circles?"] * 3
GRID = (2, 3)
CODEBOOK = 16


class StripeTokenizer:
    """A picture of h · w flat cells ↔ codes: the code is the gray level of a cell divided by 16."""

    codebook_size, grid_shape, image_size = CODEBOOK, GRID, 3

    def __init__(self) -> None:
        self.batches: list[int] = []

    def preprocess(self, images):
        arrays = [np.asarray(image.convert("L").resize((3, 2)), np.float32) for image in images]
        return torch.from_numpy(np.stack(arrays))[:, None].expand(-1, 3, -1, -1) / 127.5 - 1

    def encode(self, pixels):
        self.batches.append(len(pixels))
        return ((pixels[:, 0] + 1) * 127.5 / 16).round().long().clamp(0, CODEBOOK - 1)

    def decode(self, codes):
        return (codes[:, None].expand(-1, 3, -1, -1) * 16).float() / 127.5 - 1

    def postprocess(self, pixels):
        levels = ((pixels.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
        return [Image.fromarray(level) for level in levels]


@pytest.fixture(scope="session")
def text() -> BPETextTokenizer:
    return BPETextTokenizer.train(CORPUS, 400)


@pytest.fixture(scope="session")
def vocab(text) -> Vocab:
    return vocab_for(text, CODEBOOK, GRID)


@pytest.fixture(scope="session")
def tokenizer(text, vocab) -> DocumentTokenizer:
    return DocumentTokenizer(vocab, text)


@pytest.fixture
def image_tokenizer() -> StripeTokenizer:
    return StripeTokenizer()


@pytest.fixture
def picture():
    """Makes a 3 × 2 gray picture with the given codes (2, 3)."""

    def make(codes) -> Image.Image:
        return Image.fromarray((np.asarray(codes) * 16).astype(np.uint8))

    return make
