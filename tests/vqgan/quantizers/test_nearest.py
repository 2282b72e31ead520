"""Code lookup against brute force in float64 and against vector-quantize-pytorch."""

from __future__ import annotations

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

import vqgan.quantizers.nearest as nearest
from vqgan.quantizers.nearest import most_similar_codes, nearest_codes


def _brute_force(rows: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return (rows.double()[:, None] - codebook.double()).square().sum(-1)


def test_nearest_codes_are_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, codebook = torch.randn(300, 16, generator=generator), torch.randn(64, 16, generator=generator)
    assert torch.equal(nearest_codes(rows, codebook), _brute_force(rows, codebook).argmin(1))


def test_most_similar_codes_maximize_the_cosine() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(300, 8, generator=generator) * 7
    codebook = torch.nn.functional.normalize(torch.randn(64, 8, generator=generator), dim=-1)
    cosine = torch.nn.functional.cosine_similarity(rows[:, None], codebook, dim=-1)
    assert torch.equal(most_similar_codes(rows, codebook), cosine.argmax(1))


@pytest.mark.parametrize("cosine", [False, True])
def test_codes_are_those_of_the_library(cosine: bool) -> None:
    torch.manual_seed(2)
    library = VectorQuantize(dim=32, codebook_size=512, use_cosine_sim=cosine).eval()
    rows = library.codebook[torch.randint(512, (4096,))] + 0.3 * library.codebook.std() * torch.randn(4096, 32)
    expected = library(rows[None])[1][0]
    ours = (most_similar_codes if cosine else nearest_codes)(rows, library.codebook)
    differ = ours != expected
    assert differ.float().mean() <= 0.001
    distance = _brute_force(rows[differ], library.codebook).sqrt()
    gap = distance.gather(1, ours[differ, None]) - distance.gather(1, expected[differ, None])
    assert torch.all(gap.abs() < 1e-5)


def test_blocks_do_not_change_the_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    rows, codebook = torch.randn(100, 8, generator=generator), torch.randn(32, 8, generator=generator)
    whole = nearest_codes(rows, codebook)
    monkeypatch.setattr(nearest, "_CPU_SCORES", 7 * 32)
    assert torch.equal(nearest_codes(rows, codebook), whole)


def test_vectors_that_are_being_trained_are_looked_up() -> None:
    rows, codebook = torch.randn(9, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    assert torch.equal(nearest_codes(rows, codebook), _brute_force(rows.detach(), codebook.detach()).argmin(1))
    assert nearest_codes(rows[:0], codebook).shape == (0,)


def test_of_equal_codes_the_first_is_taken() -> None:
    codebook = torch.tensor([[5.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert nearest_codes(torch.ones(3, 2), codebook).tolist() == [1, 1, 1]
