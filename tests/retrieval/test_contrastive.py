"""The contrastive loss equals a slow reading of its definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from retrieval.contrastive import alike_pairs, contrastive_loss


def vectors(seed: int, count: int = 5) -> Tensor:
    return normalize(torch.randn(count, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def slow_loss(images: Tensor, texts: Tensor, scale: float, alike: Tensor, hard: Tensor | None) -> float:
    total = 0.0
    for i in range(len(images)):
        others = [j for j in range(len(images)) if j == i or not alike[i, j]]
        own = scale * float(images[i] @ texts[i])
        over_texts = [scale * float(images[i] @ texts[j]) for j in others]
        over_images = [scale * float(images[j] @ texts[i]) for j in others]
        if hard is not None:
            over_texts.append(scale * float(images[i] @ hard[i]))
        for choices in (over_texts, over_images):
            total += math.log(sum(map(math.exp, choices))) - own
    return total / (2 * len(images))


@pytest.mark.parametrize("with_hard", [False, True])
def test_equals_the_slow_reading(with_hard: bool) -> None:
    images, texts = vectors(0), vectors(1)
    hard = vectors(2) if with_hard else None
    alike = torch.eye(5, dtype=torch.bool)
    alike[0, 3] = alike[3, 0] = True
    loss = contrastive_loss(images, texts, torch.tensor(9.0, dtype=torch.float64), alike, hard)
    assert float(loss) == pytest.approx(slow_loss(images, texts, 9.0, alike, hard), rel=1e-9)


def test_alike_pairs_get_no_gradient_from_each_other() -> None:
    images, texts = vectors(0, 2).requires_grad_(), vectors(1, 2).requires_grad_()
    loss = contrastive_loss(images, texts, torch.tensor(5.0, dtype=torch.float64), torch.ones(2, 2, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0)
    assert images.grad is not None
    assert float(images.grad.abs().max()) < 1e-12


def test_pairs_are_alike_by_picture_or_by_text() -> None:
    alike = alike_pairs(keys := torch.tensor([[1, 7], [2, 8], [1, 9], [3, 8]]), keys)
    expected = [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
    assert alike.int().tolist() == expected
