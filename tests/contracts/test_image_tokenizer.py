"""The contract of `ImageTokenizer`: what every implementation keeps, whatever network and quantizer are inside."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.core.errors import InputError
from cm3.core.protocols import ImageTokenizer
from vqgan.config import VQConfig
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer

_PATCH = {"image_size": 24, "network_options": {"width": 16}, "codebook_dim": 8, "codebook_size": 64}
_TAMING = {
    "image_size": 16,
    "downsample_factor": 4,
    "codebook_dim": 4,
    "codebook_size": 32,
    "network": "taming",
    "network_options": {"channels": 8, "channel_multipliers": (1, 1, 2), "groups": 4, "latent_channels": 8},
    "quantizer": "vq",
}
_DVAE = {
    "image_size": 16,
    "downsample_factor": 2,
    "codebook_dim": 4,
    "codebook_size": 32,
    "network": "dvae",
    "network_options": {"hidden": 8, "groups": 2},
    "quantizer": "gumbel",
    "quantizer_options": {"latent_dim": 16},
}
CONFIGS = {
    "patch-ema": _PATCH,
    "patch-cosine": {**_PATCH, "quantizer": "cosine"},
    "patch-rotation": {**_PATCH, "quantizer": "rotation"},
    "patch-vq": {**_PATCH, "quantizer": "vq"},
    "patch-ibq": {**_PATCH, "quantizer": "ibq"},
    "patch-lfq": {**_PATCH, "quantizer": "lfq"},
    "patch-fsq": {**_PATCH, "quantizer": "fsq", "codebook_size": 240},
    "taming": _TAMING,
    "dvae": _DVAE,
}


@pytest.fixture(params=CONFIGS)
def tokenizer(request: pytest.FixtureRequest) -> ImageTokenizer:
    torch.manual_seed(0)
    return VQTokenizer(VQModel(VQConfig(**CONFIGS[request.param])))


@pytest.fixture
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(24, 24), (40, 30), (10, 50)]
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def test_it_is_an_image_tokenizer(tokenizer: ImageTokenizer) -> None:
    assert isinstance(tokenizer, ImageTokenizer)


def test_preprocess_gives_pixels_of_the_stated_size(tokenizer: ImageTokenizer, images: list[Image.Image]) -> None:
    pixels = tokenizer.preprocess(images)
    assert pixels.shape == (3, 3, tokenizer.image_size, tokenizer.image_size)
    assert pixels.dtype == torch.float32
    assert pixels.abs().max() <= 1


def test_codes_have_the_stated_grid_and_range(tokenizer: ImageTokenizer, images: list[Image.Image]) -> None:
    codes = tokenizer.encode(tokenizer.preprocess(images))
    assert codes.shape == (3, *tokenizer.grid_shape)
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0
    assert int(codes.max()) < tokenizer.codebook_size


def test_decode_gives_pixels_for_every_code(tokenizer: ImageTokenizer) -> None:
    height, width = tokenizer.grid_shape
    count = -(-tokenizer.codebook_size // (height * width))
    codes = (torch.arange(count * height * width) % tokenizer.codebook_size).view(count, height, width)
    pixels = tokenizer.decode(codes)
    assert pixels.shape == (count, 3, tokenizer.image_size, tokenizer.image_size)
    assert pixels.dtype == torch.float32
    assert pixels.abs().max() <= 1
    assert torch.isfinite(pixels).all()


def test_pictures_do_not_influence_each_other(tokenizer: ImageTokenizer, images: list[Image.Image]) -> None:
    pixels = tokenizer.preprocess(images)
    together = tokenizer.encode(pixels)
    alone = torch.cat([tokenizer.encode(pixels[index : index + 1]) for index in range(3)])
    assert torch.equal(together, alone)
    assert torch.allclose(tokenizer.decode(together)[1:2], tokenizer.decode(together[1:2]), atol=1e-5)


def test_postprocess_inverts_preprocess_at_the_stated_size(tokenizer: ImageTokenizer) -> None:
    size = tokenizer.image_size
    levels = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    [picture] = tokenizer.postprocess(tokenizer.preprocess([Image.fromarray(levels)]))
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), levels)


def test_empty_batches_stay_empty(tokenizer: ImageTokenizer) -> None:
    codes = tokenizer.encode(tokenizer.preprocess([]))
    assert codes.shape == (0, *tokenizer.grid_shape)
    assert tokenizer.postprocess(tokenizer.decode(codes)) == []


def test_wrong_pixels_and_codes_are_refused_in_words(tokenizer: ImageTokenizer) -> None:
    size, (height, width) = tokenizer.image_size, tokenizer.grid_shape
    with pytest.raises(InputError, match="pixels must be"):
        tokenizer.encode(torch.zeros(1, 3, size, size + 8))
    with pytest.raises(InputError, match="codes must be"):
        tokenizer.decode(torch.zeros(1, height + 1, width, dtype=torch.int64))
    for wrong in (-1, tokenizer.codebook_size):
        with pytest.raises(InputError, match="codes must lie in"):
            tokenizer.decode(torch.full((1, height, width), wrong))
