"""Regions that matter: boxes and maps go through the fitting of their picture, and weigh the errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cm3.documents.document import Document, ImageSegment
from cm3.documents.reasons import RecordError
from cm3.documents.report import ReadReport
from vqgan.config import PreprocessConfig, VQConfig
from vqgan.pictures import Collecting, collect_pictures
from vqgan.regions import pixel_weights, region_map, training_images

CONFIG = VQConfig(image_size=16, downsample_factor=8)


def _document(regions: Any, size: tuple[int, int] = (32, 16)) -> Document:
    return Document("d", (ImageSegment(image=Image.new("RGB", size)),), {"regions": regions})


def _map(regions: Any, **preprocessing: Any) -> np.ndarray:
    return region_map(_document(regions), 0, (32, 16), 16, PreprocessConfig.model_validate(preprocessing))


def test_a_box_follows_the_crop() -> None:
    strengths = _map([{"box": [8, 0, 12, 16]}])  # the middle 16 of 32 columns stay
    assert np.all(strengths[:, :4] == 255)
    assert np.all(strengths[:, 4:] == 0)


def test_a_box_follows_padding_and_stretching() -> None:
    padded = _map([{"box": [0, 0, 32, 16]}], fit="pad")
    assert np.all(padded[4:12] == 255)
    assert np.all(padded[[0, 3, 12, 15]] == 0)
    stretched = _map([{"box": [0, 0, 16, 16], "strength": 0.5}], fit="stretch")
    assert np.all(stretched[:, :8] == 128)
    assert np.all(stretched[:, 8:] == 0)


def test_the_stronger_of_two_boxes_holds_and_others_are_for_other_pictures() -> None:
    regions = [{"box": [8, 0, 24, 16], "strength": 0.2}, {"box": [8, 0, 24, 8]}, {"box": [0, 0, 32, 16], "picture": 1}]
    strengths = _map(regions)
    assert np.all(strengths[:8] == 255)
    assert np.all(strengths[8:] == 51)
    assert np.all(_map([{"box": [-5, -5, 9, 99]}])[:, 0] == 255)  # what lies outside of the picture is left out


def test_a_gray_picture_named_regions_is_the_map_of_the_others() -> None:
    gray = Image.fromarray(np.full((16, 32), 51, np.uint8))
    segments = (ImageSegment(image=Image.new("RGB", (32, 16))), ImageSegment(image=gray))
    document = Document("d", segments, {"images": ["image", "regions"]})
    assert training_images(document) == [segments[0]]
    assert np.all(region_map(document, 0, (32, 16), 16, PreprocessConfig()) == 51)


@pytest.mark.parametrize("regions", ["face", [3], [{"box": [0, 0, 1]}], [{"box": [3, 0, 3, 4]}], [{"box": "abcd"}], [{}]])
def test_senseless_regions_refuse_the_document(regions: Any, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="meta 'regions'"):
        _map(regions)
    report = ReadReport(seen=1, ok=1)
    pictures = collect_pictures([_document(regions)], CONFIG, Collecting(tmp_path, regions=True), report)
    assert (len(pictures), report.ok, report.rejected) == (0, 0, {"bad_record": 1})


def test_collected_regions_stand_beside_their_pictures(tmp_path: Path) -> None:
    documents = [_document([{"box": [8, 0, 12, 16]}]), Document("e", (ImageSegment(image=Image.new("RGB", (16, 16))),))]
    pictures = collect_pictures(documents, CONFIG, Collecting(tmp_path, regions=True, workers=2))
    strengths = pictures.take_regions(np.array([1, 0]))
    assert strengths is not None
    assert strengths.float().mean((1, 2)).tolist() == [0.0, 255 / 4]
    weights = pixel_weights(strengths, 5.0)
    assert weights.shape == (2, 1, 16, 16)
    assert torch.unique(weights).tolist() == [1.0, 5.0]
    assert collect_pictures(documents, CONFIG, Collecting(tmp_path)).take_regions(np.array([0])) is None
