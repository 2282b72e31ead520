"""Pixels equal those of transformers' own processor, for every geometry and mode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cm3.core.errors import ArtefactError
from retrieval.encoders.preprocessing import Preprocessing

SIZES = [(224, 224), (48, 48), (640, 480), (333, 500), (17, 90), (301, 45), (225, 223)]


def noise(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(size[0])
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_processor_of_transformers(size: tuple[int, int]) -> None:
    expected = CLIPImageProcessorPil()(noise(size), return_tensors="np")["pixel_values"]
    assert np.abs(Preprocessing().pixels([noise(size)]) - expected).max() <= 1e-5


@pytest.mark.parametrize("mode", ["L", "P", "CMYK"])
def test_other_modes_are_read_as_rgb(mode: str) -> None:
    image = noise((60, 50), mode)
    expected = CLIPImageProcessorPil()(image.convert("RGB"), return_tensors="np")["pixel_values"]
    assert np.abs(Preprocessing().pixels([image]) - expected).max() <= 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 25}},  # the crop is larger: padding
        {"size": {"height": 30, "width": 40}, "do_center_crop": False, "resample": 2},
        {"size": {"height": 64, "width": 64}, "crop_size": 48, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ],
)
def test_reads_the_settings_that_transformers_saves(settings: dict, tmp_path: Path) -> None:
    processor = CLIPImageProcessorPil(**settings)
    processor.save_pretrained(tmp_path)
    ours = Preprocessing.load(tmp_path)
    for size in SIZES:
        expected = processor(noise(size), return_tensors="np")["pixel_values"]
        assert np.abs(ours.pixels([noise(size)]) - expected).max() <= 1e-5


@pytest.mark.parametrize("given", [Preprocessing.square(48), Preprocessing(shortest_edge=None, height=20, width=30, crop=None)])
def test_what_we_write_reads_back_here_and_in_transformers(given: Preprocessing, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given.to_json()))
    assert Preprocessing.load(tmp_path) == given
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path)(noise((70, 40)), return_tensors="np")["pixel_values"]
    assert np.abs(given.pixels([noise((70, 40))]) - theirs).max() <= 1e-5


@pytest.mark.parametrize("content", [None, "no json", "[]", "{}", '{"size": 48, "do_normalize": false}'])
def test_unusable_settings_are_an_artefact_error(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ArtefactError, match="preprocess"):
        Preprocessing.load(tmp_path)
