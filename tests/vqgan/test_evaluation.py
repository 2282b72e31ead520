"""Figures of a round trip: against direct computation, with a tokenizer whose errors are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from cm3.core.errors import InputError
from vqgan.evaluation import codebook_metrics, evaluate, picture_errors, reconstruction_metrics, worst_and_best
from vqgan.sheets import comparison_picture


class _OneLevelOff:
    """Encodes nothing; decodes gray pictures `step` levels above black."""

    codebook_size, grid_shape, image_size = 8, (2, 2), 16

    def __init__(self, step: int) -> None:
        self.step = step

    def preprocess(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.arange(4).view(1, 2, 2).expand(len(pixels), 2, 2)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.full((len(codes), 3, 16, 16), self.step / 127.5 - 1)

    def postprocess(self, pixels: torch.Tensor) -> list[Image.Image]:
        raise NotImplementedError


def _gray(level: int) -> Image.Image:
    return Image.new("RGB", (16, 16), (level, level, level))


def test_evaluate_averages_over_pictures() -> None:
    figures = evaluate(_OneLevelOff(10), [_gray(0), _gray(5)], batch_size=1)
    assert figures["images"] == 2
    assert figures["psnr_db"] == pytest.approx((20 * math.log10(255 / 10) + 20 * math.log10(255 / 5)) / 2, abs=1e-4)
    assert figures["l1"] == pytest.approx(7.5 / 127.5, abs=1e-6)
    assert (figures["codes_used"], figures["usage"]) == (4, 0.5)
    assert figures["perplexity"] == pytest.approx(4)
    assert figures["images_per_s"] > 0
    with pytest.raises(InputError, match="no pictures"):
        evaluate(_OneLevelOff(1), [])


def test_identical_pictures_count_a_hundred() -> None:
    pixels = torch.zeros(1, 3, 4, 4)
    assert picture_errors(pixels, pixels)["psnr_db"].tolist() == [100.0]


def test_ssim_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    after = np.clip(before.astype(int) + rng.integers(-20, 20, before.shape), 0, 255).astype(np.uint8)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(before, after, channel_axis=2, data_range=255, **settings)
    pixels = [torch.from_numpy(array).permute(2, 0, 1)[None].float() / 127.5 - 1 for array in (before, after)]
    assert reconstruction_metrics(pixels[0], pixels[1])["ssim"] == pytest.approx(expected, abs=2e-3)  # borders differ


def test_usage_counts_codes() -> None:
    figures = codebook_metrics(torch.tensor([[0, 0], [1, 3]]), 8)
    assert (figures["codes_used"], figures["usage"]) == (3, 0.375)
    assert figures["perplexity"] == pytest.approx(math.exp(1.5 * math.log(2)), abs=1e-6)


def test_the_sheet_shows_each_original_above_its_reconstruction() -> None:
    before, after = torch.full((3, 3, 4, 4), -1.0), torch.full((3, 3, 4, 4), 1.0)
    before[2] = 0.0
    sheet = np.asarray(comparison_picture(before, after, columns=2, gap=1))
    assert sheet.shape == (2 * (8 + 3) + 1, 2 * 5 + 1, 3)
    assert np.all(sheet[1:5, 1:5] == 0)
    assert np.all(sheet[6:10, 1:5] == 255)
    assert np.all(sheet[12:16, 1:5] == 128)


def test_worst_and_best_come_first_and_last() -> None:
    sheet = np.asarray(worst_and_best(_OneLevelOff(0), [_gray(level) for level in (30, 0, 90, 60)], count=1))
    assert sheet[4, 4, 0] == 90  # pairs stand below each other: one column
    assert sheet[2 * 16 + 3 * 2 + 4, 4, 0] == 0
