"""Starting from data: pictures of few distinct patches come back exactly before any training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.documents.document import Document
from vqgan.config import VQConfig
from vqgan.initialization import distinct_patches, initialize_from_data
from vqgan.model import VQModel
from vqgan.pictures import Collecting, Pictures, collect_pictures
from vqgan.preprocessing import images_to_pixels, pixels_to_arrays
from vqgan.quantizers import QUANTIZERS

Draw = Callable[[int], Image.Image]


@pytest.fixture
def pictures(block_picture: Draw, tmp_path: Path) -> Pictures:
    config = VQConfig(image_size=24)
    return collect_pictures((Document.pair(f"{i}", "", block_picture(i)) for i in range(200)), config, Collecting(tmp_path))


def test_distinct_patches_and_their_weights() -> None:
    arrays = np.zeros((3, 3, 4, 8), np.uint8)
    arrays[2, :, :, 4:] = 255
    patches, weights = distinct_patches(Pictures(["a", "b", "c"], arrays), np.arange(3), 4)
    assert sorted(patches.mean(1).tolist()) == [-1.0, 1.0]
    assert weights[patches[:, 0].argsort()].tolist() == pytest.approx([5**0.25, 1.0])


@torch.no_grad()
def test_few_distinct_patches_come_back_exactly(pictures: Pictures, block_picture: Draw) -> None:
    torch.manual_seed(0)
    model = VQModel(VQConfig(image_size=24, codebook_size=64, codebook_dim=24)).eval()  # 36 different blocks
    initialize_from_data(model, pictures, np.arange(200), seed=0)
    pixels = images_to_pixels([block_picture(number) for number in range(1000, 1020)], 24, model.config.preprocessing)
    restored = model.decode(model.encode(pixels))
    assert torch.equal(pixels_to_arrays(restored), pixels_to_arrays(pixels))


@pytest.mark.parametrize("quantizer", QUANTIZERS.names())
def test_every_quantizer_can_be_started(quantizer: str, pictures: Pictures) -> None:
    size = 240 if quantizer == "fsq" else 32
    torch.manual_seed(0)
    model = VQModel(
        VQConfig(image_size=24, codebook_size=size, codebook_dim=8, quantizer=quantizer, network_options={"width": 16})
    )
    initialize_from_data(model, pictures, np.arange(12), seed=0)
    assert torch.isfinite(model.quantizer.codebook()).all()


def test_equal_seeds_start_equally(pictures: Pictures) -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        model = VQModel(VQConfig(image_size=24, codebook_size=32, codebook_dim=8, network_options={"width": 16}))
        initialize_from_data(model, pictures, np.arange(12), seed=5)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_other_networks_get_their_codebook(pictures: Pictures, block_picture: Draw) -> None:
    options = {"channels": 8, "channel_multipliers": (1, 1, 1, 2), "groups": 4, "latent_channels": 8}
    config = VQConfig(image_size=24, codebook_size=16, codebook_dim=4, network="taming", network_options=options, quantizer="vq")
    torch.manual_seed(0)
    model = VQModel(config).eval()
    initialize_from_data(model, pictures, np.arange(12), seed=0)
    pixels = images_to_pixels([block_picture(number) for number in range(12)], 24, config.preprocessing)
    assert len(model.encode(pixels).unique()) > 8
