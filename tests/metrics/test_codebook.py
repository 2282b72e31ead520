"""Codebook use on counts that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cm3.core.errors import UsageError
from cm3.metrics.codebook import code_counts, codebook_perplexity, codebook_usage


def test_counts_over_any_shape() -> None:
    codes = torch.tensor([[[0, 3], [3, 1]], [[3, 3], [0, 1]]], dtype=torch.int32)
    assert code_counts(codes, 5).tolist() == [2, 2, 0, 4, 0]


def test_usage_and_perplexity() -> None:
    counts = torch.tensor([2, 2, 0, 4, 0])
    assert codebook_usage(counts) == pytest.approx(3 / 5)
    assert codebook_perplexity(counts) == pytest.approx(math.exp(-(0.5 * math.log(0.25) + 0.5 * math.log(0.5))))


def test_extremes() -> None:
    assert codebook_perplexity(torch.full((64,), 7)) == pytest.approx(64)
    assert codebook_perplexity(torch.tensor([0, 9, 0])) == pytest.approx(1)
    assert codebook_usage(torch.zeros(4, dtype=torch.int64)) == 0
    assert codebook_perplexity(torch.zeros(4, dtype=torch.int64)) == 0
    assert code_counts(torch.empty(0, dtype=torch.int64), 3).tolist() == [0, 0, 0]


def test_counts_add_up_over_batches() -> None:
    codes = torch.randint(0, 10, (20, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(code_counts(codes[:7], 10) + code_counts(codes[7:], 10), code_counts(codes, 10))


def test_codes_out_of_range() -> None:
    for code in (-1, 5):
        with pytest.raises(UsageError, match=r"expected \[0, 5\)"):
            code_counts(torch.tensor([0, code]), 5)
