"""Ranks against sorting, ties, several right items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cm3.core.errors import UsageError
from cm3.metrics.ranking import mean_reciprocal_rank, recall_at_k, target_ranks


def test_ranks_equal_those_of_sorting() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.standard_normal((40, 25)), rng.integers(0, 25, 40)
    expected = [1 + list(np.argsort(-row)).index(target) for row, target in zip(scores, targets)]
    assert target_ranks(torch.from_numpy(scores), torch.from_numpy(targets)).tolist() == expected
    for k in (1, 5, 25):
        assert recall_at_k(torch.from_numpy(scores), torch.from_numpy(targets), k) == np.mean(np.array(expected) <= k)
    found = mean_reciprocal_rank(torch.from_numpy(scores), torch.from_numpy(targets))
    assert found == pytest.approx(np.mean(1 / np.array(expected)))


def test_several_right_items_count_by_the_best() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]])
    relevant = torch.tensor([[False, True, True, False], [True, False, False, False]])
    assert target_ranks(scores, relevant).tolist() == [2, 4]
    assert recall_at_k(scores, relevant, 2) == 0.5
    assert mean_reciprocal_rank(scores, relevant) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_ties_count_against_the_score() -> None:
    constant = torch.zeros(4, 10)
    assert target_ranks(constant, torch.arange(4)).tolist() == [10] * 4
    assert recall_at_k(constant, torch.arange(4), 1) == 0
    both_right = torch.ones(1, 2, dtype=torch.bool)
    assert target_ranks(torch.zeros(1, 2), both_right).tolist() == [1]


def test_wrong_input() -> None:
    scores = torch.zeros(2, 3)
    for targets in (torch.tensor([0]), torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.zeros(2, 3, dtype=torch.bool)):
        with pytest.raises(UsageError, match="targets must be"):
            recall_at_k(scores, targets, 1)
    with pytest.raises(UsageError, match="NaN"):
        recall_at_k(torch.full((2, 3), torch.nan), torch.tensor([0, 1]), 1)
    with pytest.raises(UsageError, match="at least one"):
        recall_at_k(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 1)
