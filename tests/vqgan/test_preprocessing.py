"""Fitting pictures to size: exact where nothing is to do, the stated policy elsewhere."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.documents.document import ImageSegment
from cm3.documents.reasons import ImageError, RejectReason
from vqgan.config import PreprocessConfig
from vqgan.loading import picture_array
from vqgan.preprocessing import fit_image, fitted_array, images_to_pixels, pixels_to_images, to_pixels
from vqgan.tokenizer import VQTokenizer

RED, BLUE = (200, 0, 0), (0, 0, 200)


def _halves(width: int, height: int) -> Image.Image:
    """Left third and right third blue, the middle red."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (0, 0, width // 3, height))
    image.paste(BLUE, (width - width // 3, 0, width, height))
    return image


def test_levels_survive_the_round_trip() -> None:
    levels = np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3)
    [image] = pixels_to_images(images_to_pixels([Image.fromarray(levels)], 16, PreprocessConfig()))
    assert np.array_equal(np.asarray(image), levels)


def test_pixels_span_minus_one_to_one() -> None:
    pixels = images_to_pixels([Image.new("RGB", (4, 4), (0, 255, 51))], 4, PreprocessConfig())
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


def test_crop_keeps_the_middle() -> None:
    array = np.asarray(fit_image(_halves(48, 16), 16, PreprocessConfig(fit="crop")))
    assert np.all(array == RED)


def test_pad_keeps_everything_on_the_background() -> None:
    config = PreprocessConfig(fit="pad", background=(1, 2, 3), resample="box")
    array = np.asarray(fit_image(_halves(48, 16), 24, config))
    assert np.all(array[:8] == (1, 2, 3))
    assert np.all(array[16:] == (1, 2, 3))
    assert np.all(array[8:16, :8] == BLUE)
    assert np.all(array[8:16, 8:16] == RED)


def test_stretch_keeps_the_proportions_of_neither_side() -> None:
    array = np.asarray(fit_image(_halves(48, 16), 24, PreprocessConfig(fit="stretch", resample="nearest")))
    assert np.all(array[:, :8] == BLUE)
    assert np.all(array[:, 8:16] == RED)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert fit_image(Image.new(mode, (8, 8)), 8, PreprocessConfig()).mode == "RGB"


def test_transparency_lies_on_white() -> None:
    assert fit_image(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), 8, PreprocessConfig()).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("resample", ["lanczos", "bicubic", "box"])
@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("sides", [(96, 64), (64, 96), (200, 40), (32, 32), (20, 28)])
def test_a_draft_is_scaled_like_the_whole_picture(fit: str, resample: str, sides: tuple[int, int]) -> None:
    y, x = np.mgrid[: sides[1], : sides[0]] / 9
    levels = np.stack([np.sin(x + y), np.cos(x - y), np.sin(x)], -1) * 120 + 128
    image = Image.fromarray(levels.astype(np.uint8))
    config = PreprocessConfig(fit=fit, resample=resample)
    whole, draft = (fitted_array(image, 32, config, draft).astype(int) for draft in (False, True))
    assert draft.shape == (3, 32, 32)
    assert np.abs(whole - draft).max() <= 2


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
