"""The contract of the protocol `Reranker`, which every implementation passes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import retrieval
from cm3.core.protocols import Reranker
from retrieval.encoders.hashing import HashingEncoder


@pytest.fixture
def reranker() -> Reranker:
    return retrieval.CLIPReranker(HashingEncoder())


def test_is_a_reranker(reranker: Reranker) -> None:
    assert isinstance(reranker, Reranker)


def test_one_score_for_each_picture_whatever_stands_beside_it(reranker: Reranker) -> None:
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    scores = reranker.score("a field of green", images)
    assert scores.shape == (3,)
    assert scores.dtype == torch.float32
    assert torch.isfinite(scores).all()
    alone = torch.cat([reranker.score("a field of green", [image]) for image in images])
    torch.testing.assert_close(scores, alone)
