"""Pictures with few distinct patches, and the configuration of a tokenizer small enough to train in a second."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.core.seeding import numpy_generator
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer

COLORS = [(214, 39, 48), (44, 160, 66), (44, 92, 214), (246, 208, 46), (24, 24, 28), (248, 248, 248)]


def _block_picture(number: int, size: int = 24) -> Image.Image:
    """A picture of 8×8 blocks of plain colors, some with a corner cut; equal numbers give equal pictures."""
    rng = np.random.default_rng(number)
    pixels = np.zeros((size, size, 3), np.uint8)
    for top in range(0, size, 8):
        for left in range(0, size, 8):
            first, second = rng.integers(len(COLORS), size=2)
            pixels[top : top + 8, left : left + 8] = COLORS[first]
            if rng.random() < 0.5:
                pixels[top : top + 3, left : left + 3] = COLORS[second]
    return Image.fromarray(pixels)


@pytest.fixture
def block_picture() -> Callable[[int], Image.Image]:
    """The function from a number to its picture."""
    return _block_picture


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """A folder of 40 such pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        _block_picture(number).save(folder / f"{number:03}.png")
    return folder


@pytest.fixture
def seeded_tensor() -> Callable[[str, tuple[int, ...]], torch.Tensor]:
    """The function from the name of a parameter and its shape to the values that golden numbers were computed with.

    Matrices and kernels: normal with variance 1 / fan-in; vectors: 0.1 · normal, and 1 more for the weight of a norm.
    """

    def make(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        values = numpy_generator("golden", name).standard_normal(tuple(shape), dtype=np.float32)
        if len(shape) > 1:
            return torch.from_numpy(values / np.float32(math.sqrt(math.prod(shape[1:]))))
        return torch.from_numpy(np.float32(0.1) * values + np.float32(name.endswith("weight")))

    return make


@pytest.fixture
def tokenizer(tmp_path: Path) -> VQTokenizer:
    """An untrained tokenizer of 24×24 pixels and 3×3 codes of 64, saved as `tmp_path`/tokenizer."""
    torch.manual_seed(0)
    made = VQTokenizer(VQModel(VQConfig(image_size=24, codebook_size=64, codebook_dim=8, network_options={"width": 16})))
    made.save(tmp_path / "tokenizer")
    return made
