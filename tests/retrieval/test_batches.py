"""Batches of similar length: every pair once per pass, different company in every pass, pure in the step."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.batches import LengthGroupedOrder

LENGTHS = np.random.default_rng(0).integers(5, 30, 230)


def test_a_pass_holds_every_pair_at_most_once_and_nearly_all() -> None:
    order = LengthGroupedOrder(LENGTHS, 32, seed=1)
    first = np.concatenate([order.rows(step) for step in range(7)])
    second = np.concatenate([order.rows(step) for step in range(7, 14)])
    assert len(set(first.tolist())) == len(set(second.tolist())) == 224
    assert set(first.tolist()) != set(second.tolist())  # the six left out change
    assert first.tolist() != second.tolist()


def test_texts_of_a_batch_are_of_similar_length() -> None:
    order = LengthGroupedOrder(LENGTHS, 32, seed=1)
    assert all(np.ptp(LENGTHS[order.rows(step)]) <= 7 for step in range(14))  # the whole range is 24
    assert len({int(LENGTHS[order.rows(step)].min()) for step in range(7)}) > 3


def test_rows_are_a_pure_function_of_seed_and_step() -> None:
    order = LengthGroupedOrder(LENGTHS, 32, seed=1)
    ahead = order.rows(40).tolist()
    assert [order.rows(step).tolist() for step in (3, 40)][1] == ahead
    assert LengthGroupedOrder(LENGTHS, 32, seed=1).rows(40).tolist() == ahead
    assert LengthGroupedOrder(LENGTHS, 32, seed=2).rows(40).tolist() != ahead


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33])
def test_few_pairs_still_fill_batches(count: int) -> None:
    order = LengthGroupedOrder(LENGTHS[:count], 32, seed=0)
    for step in range(4):
        assert order.rows(step).shape == (32,)
        assert len(set(order.rows(step).tolist())) == min(count, 32)
