"""Rankings."""

import pytest
import torch
from PIL import Image

from cm3.core.errors import NonFiniteError, UsageError
from cm3.decode.rerank import rank, rank_by_reranker


def test_best_first_and_ties_in_order() -> None:
    ranking = rank([0.1, 0.7, 0.7, -1.0])
    assert ranking.order == (1, 2, 0, 3)
    assert ranking.best == 1
    assert ranking.scores == (0.1, 0.7, 0.7, -1.0)
    assert rank(torch.tensor([2.0])).best == 0


def test_nan_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="candidate 1"):
        rank([0.0, float("nan")])


def test_a_reranker_with_too_few_scores_is_refused() -> None:
    class Lazy:
        def score(self, text: str, images: list[Image.Image]) -> torch.Tensor:
            return torch.zeros(1)

    with pytest.raises(UsageError, match="1 scores for 2 pictures; expected one for each"):
        rank_by_reranker("bright", [Image.new("RGB", (2, 2))] * 2, Lazy())


def test_by_a_reranker() -> None:
    class Brightness:
        def score(self, text: str, images: list[Image.Image]) -> torch.Tensor:
            return torch.tensor([float(sum(image.getpixel((0, 0)))) for image in images])

    images = [Image.new("RGB", (2, 2), color) for color in ("black", "white", "gray")]
    assert rank_by_reranker("bright", images, Brightness()).order == (1, 2, 0)
