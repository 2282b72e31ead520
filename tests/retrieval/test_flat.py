"""Exact search: the ids of brute force, a defined order among equals, and no dependence on how queries are batched."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import retrieval.index.flat as flat
from retrieval.index.flat import FlatIndex, largest


def brute_force(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = (queries.astype(np.float64)[:, None] * vectors.astype(np.float64)).sum(-1).astype(np.float32)
    order = np.lexsort((np.broadcast_to(np.arange(len(vectors)), scores.shape), -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), order


@pytest.mark.parametrize("k", [1, 10, 699, 700])
def test_equals_brute_force_and_faiss(unit_vectors: np.ndarray, k: int) -> None:
    queries = unit_vectors[::7] + 0.1
    scores, rows = FlatIndex(unit_vectors).search(queries, k)
    expected_scores, expected_rows = brute_force(queries, unit_vectors, k)
    assert (rows == expected_rows).all()
    assert (scores == expected_scores).all()
    reference = faiss.IndexFlatIP(unit_vectors.shape[1])
    reference.add(unit_vectors)
    assert (reference.search(queries, min(k, 10))[1] == rows[:, :10]).all()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(count=st.integers(1, 60), distinct=st.integers(1, 4), k=st.integers(1, 60), seed=st.integers(0, 99))
def test_among_equal_vectors_the_lower_row_goes_first(count: int, distinct: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = np.eye(4, dtype=np.float32)[rng.integers(distinct, size=count)]
    queries = rng.normal(size=(3, 4)).astype(np.float32)
    k = min(k, count)
    scores, rows = FlatIndex(vectors).search(queries, k)
    expected_scores, expected_rows = brute_force(queries, vectors, k)
    assert (rows == expected_rows).all()
    assert (scores == expected_scores).all()


def test_blocks_and_batches_change_nothing(unit_vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = unit_vectors[:20] + 0.05
    whole = FlatIndex(unit_vectors).search(queries, 12)
    monkeypatch.setattr(flat, "_BLOCK_SCORES", 1)  # blocks of as many vectors as there are candidates
    blocked = FlatIndex(unit_vectors).search(queries, 12)
    single = [FlatIndex(unit_vectors).search(query[None], 12) for query in queries]
    for part in (0, 1):
        assert (whole[part] == blocked[part]).all()
        assert (whole[part] == np.concatenate([hits[part] for hits in single])).all()


def test_no_queries_give_no_hits(unit_vectors: np.ndarray) -> None:
    scores, rows = FlatIndex(unit_vectors).search(unit_vectors[:0], 3)
    assert scores.shape == rows.shape == (0, 3)


@pytest.mark.parametrize("block", [1, 2**24])
def test_candidates_are_found_on_the_device(unit_vectors: np.ndarray, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On "meta", which gives shapes alone and refuses tensors of other devices, as a GPU does."""
    monkeypatch.setattr(flat, "_BLOCK_SCORES", block)
    found = FlatIndex(unit_vectors, "meta")._candidates(torch.empty(3, 16, device="meta"), 12)
    assert (found.shape, found.device.type) == ((3, 12), "meta")
    for scores in (torch.empty(1, 300, device="meta"), torch.empty(3, 5000, device="meta")):
        assert largest(scores, 4).device.type == "meta"


def test_vectors_go_to_the_device_once(unit_vectors: np.ndarray) -> None:
    index = FlatIndex(unit_vectors)
    assert index._searched is index._searched
    assert np.shares_memory(index._searched.numpy(), unit_vectors)
