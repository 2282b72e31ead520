"""Fitting pictures to size: exact where nothing is to do, the stated policy elsewhere."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.documents.document import ImageSegment
from cm3.documents.images import decode_image
from cm3.documents.reasons import ImageError, RejectReason
from vqgan.config import PreprocessConfig
from vqgan.loading import picture_array
from vqgan.preprocessing import fit_map, fitted_array, images_to_pixels, pixels_to_images, to_pixels
from vqgan.tokenizer import VQTokenizer

RED, BLUE = (200, 0, 0), (0, 0, 200)


def _halves(width: int, height: int) -> Image.Image:
    """Left third and right third blue, the middle red."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, 0, width // 3, height))
    image.paste(BLUE, (width - width // 3, 0, width, height))
    return image


def _fitted(image: Image.Image, size: int, config: PreprocessConfig) -> np.ndarray:
    """(Y, X, 3) uint8."""
    return fitted_array(decode_image(image), size, config).transpose(1, 2, 0)


def test_levels_survive_the_round_trip() -> None:
    levels = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    [image] = pixels_to_images(images_to_pixels([Image.fromarray(levels)], 16, PreprocessConfig()))
    assert np.array_equal(np.asarray(image), levels)


def test_pixels_span_minus_one_to_one() -> None:
    pixels = images_to_pixels([Image.new("RGB", (4, 4), (0, 255, 51))], 4, PreprocessConfig())
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_crop_keeps_the_middle() -> None:
    array = _fitted(_halves(48, 16), 16, PreprocessConfig(fit="crop"))
    assert np.all(array == RED)


def test_pad_keeps_everything_on_the_background() -> None:
    config = PreprocessConfig(fit="pad", background=(1, 2, 3), resample="box")
    array = _fitted(_halves(48, 16), 24, config)
    assert np.all(array[:8] == (1, 2, 3))
    assert np.all(array[16:] == (1, 2, 3))
    assert np.all(array[8:16, :8] == BLUE)
    assert np.all(array[8:16, 8:16] == RED)


def test_stretch_keeps_the_proportions_of_neither_side() -> None:
    array = _fitted(_halves(48, 16), 24, PreprocessConfig(fit="stretch", resample="nearest"))
    assert np.all(array[:, :8] == BLUE)
    assert np.all(array[:, 8:16] == RED)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert _fitted(Image.new(mode, (8, 8)), 8, PreprocessConfig()).shape == (8, 8, 3)


def test_transparency_lies_on_white() -> None:
    assert np.all(_fitted(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 8, PreprocessConfig()) == 255)


_FILTERS = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}


def _waves(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / 9
    return (np.stack([np.sin(x + y), np.cos(x - y), np.sin(x)], -1) * 120 + 128).astype(np.uint8)


@pytest.mark.parametrize("resample", list(_FILTERS))
@pytest.mark.parametrize("sides", [(96, 64), (64, 97), (200, 40), (32, 32), (20, 28), (301, 300)])
def test_scaled_as_by_pillow(resample: str, sides: tuple[int, int]) -> None:
    width, height = sides
    side, longest = min(sides), max(sides)
    left, top = (width - side) // 2, (height - side) // 2
    small = (round(32 * width / longest), round(32 * height / longest))
    image = Image.fromarray(_waves(width, height))
    padded = Image.new("RGB", (32, 32), "white")
    padded.paste(image.resize(small, _FILTERS[resample]), ((32 - small[0]) // 2, (32 - small[1]) // 2))
    expected = {
        "crop": image.crop((left, top, left + side, top + side)).resize((32, 32), _FILTERS[resample]),
        "stretch": image.resize((32, 32), _FILTERS[resample]),
        "pad": padded,
    }
    for fit, picture in expected.items():
        _require_near(_fitted(image, 32, PreprocessConfig(fit=fit, resample=resample)), picture)


@pytest.mark.parametrize("resample", list(_FILTERS))
@pytest.mark.parametrize("side", [20, 33, 64, 300])  # squares: Pillow chooses the order of its passes by the aspect
def test_noise_is_scaled_as_by_pillow(resample: str, side: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))
    _require_near(_fitted(noise, 32, PreprocessConfig(resample=resample)), noise.resize((32, 32), _FILTERS[resample]))


def _require_near(array: np.ndarray, picture: Image.Image) -> None:
    apart = np.abs(array.astype(int) - np.asarray(picture))
    assert apart.max() <= 2
    assert apart.mean() < 0.25


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_a_map_lies_where_its_picture_lies(fit: str) -> None:
    levels = np.zeros((40, 70), np.uint8)
    levels[10:30, 20:45] = 255
    config = PreprocessConfig(fit=fit, resample="box", background=(0, 0, 0))
    drawn = fit_map(Image.fromarray(levels.astype(np.float32) / 255), 32, config)
    picture = _fitted(Image.fromarray(levels).convert("RGB"), 32, config)[:, :, 0]
    assert np.abs(255 * drawn - picture).max() <= 1


def _stored(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def _turned(width: int = 48, height: int = 30) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown a quarter further to the right
    return _stored(_halves(width, height), "JPEG", exif=exif)


@pytest.mark.parametrize("data", [_turned(), _stored(_halves(48, 30), "PNG", transparency=RED)], ids=["exif-6", "tRNS"])
def test_an_opened_file_becomes_the_pixels_of_training(tokenizer: VQTokenizer, data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        [pixels] = tokenizer.preprocess([image])
    array = picture_array(ImageSegment(encoded=data), tokenizer.image_size, tokenizer.config.preprocessing)
    assert torch.equal(pixels, to_pixels(torch.from_numpy(array)))


def test_what_training_refuses_is_refused(tokenizer: VQTokenizer) -> None:
    with pytest.raises(ImageError) as refused:
        tokenizer.preprocess([Image.new("RGB", (1, 20_000))])
    assert refused.value.reason is RejectReason.TOO_ELONGATED
    with Image.open(io.BytesIO(_turned(480, 300)[:-500])) as image, pytest.raises(ImageError) as refused:
        tokenizer.preprocess([image])
    assert refused.value.reason is RejectReason.TRUNCATED_IMAGE
