"""Best-fit decreasing: a partition into rows that never overflow, close to the best possible."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.core.errors import UsageError
from cm3.sequences.packing import count_rows, pack


def reference(lengths: list[int], row_length: int) -> list[list[int]]:
    """Best-fit decreasing, written the slow way."""
    rows, free = [], []
    for index in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        fitting = [row for row in range(len(rows)) if free[row] >= lengths[index]]
        if not fitting:
            rows.append([])
            free.append(row_length)
            fitting = [len(rows) - 1]
        best = min(free[row] for row in fitting)
        row = [row for row in fitting if free[row] == best][-1]
        rows[row].append(index)
        free[row] -= lengths[index]
    return rows


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.integers(2, 64), max_size=60))
def test_rows_are_a_partition_that_fits(lengths):
    rows = pack(np.array(lengths, np.int64), 64)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 64 for row in rows)
    wanted = reference(lengths, 64)
    assert len(rows) == len(wanted)
    assert sorted(sum(lengths[i] for i in row) for row in rows) == sorted(sum(lengths[i] for i in row) for row in wanted)
    assert count_rows(np.array(lengths, np.int64), 64) == len(rows)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30)), max_size=12))
def test_rows_are_counted_as_they_are_packed_where_many_lengths_are_equal(groups):
    lengths = np.array([length for length, count in groups for _ in range(count)], np.int64)
    assert count_rows(lengths, 40) == len(pack(lengths, 40))


def test_many_short_documents_fill_rows_almost_entirely():
    lengths = np.random.default_rng(0).integers(40, 90, 2048)
    rows = pack(lengths, 1024)
    assert lengths.sum() / (len(rows) * 1024) > 0.98


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(UsageError, match="65 tokens does not fit a row of 64"):
        pack(np.array([3, 65]), 64)
