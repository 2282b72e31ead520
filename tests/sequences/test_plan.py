"""The plan of rows: exact epochs whatever is asked first, and whoever asks."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from cm3.core.errors import UsageError
from cm3.sequences import Mixture, ObjectiveConfig
from cm3.sequences.plan import RowPlan
from cm3.sequences.sources import ListSource

CM3 = ObjectiveConfig()


def plan(corpus, seed=0, window=37, row_length=128, parts=None) -> RowPlan:
    return RowPlan(Mixture(parts or [(corpus, 1.0)]), CM3, row_length, window, seed)


def test_over_the_epochs_no_document_is_lost_or_doubled(corpus):
    ours = plan(corpus)
    windows = 200 * 5 // 37 + 1
    rows = [ours.row(number) for number in range(ours.first_row(windows))]
    seen = Counter((entry.epoch, entry.index) for row in rows for entry in row)
    assert set(seen.values()) == {1}
    for epoch in range(5):
        assert {index for number, index in seen if number == epoch} == set(range(200))


def test_span_counts_follow_the_law_where_there_is_room_and_are_lowered_where_there_is_not(make):
    """Three tokens per span: rows that are longer than the documents by 3, 6, … tokens have room for 1, 2, … spans.

    The reference takes spans away until the sequence fits. False failures: one in 1000 seeds per row length.
    """
    document, size = make("ti", 1), 4000
    length = len(document)
    for row_length in (length, length + 3, length + 8, length + 18, length + 3 * 16):
        stream = RowPlan(Mixture([([document] * size, 1.0)]), CM3, row_length, size, 0).streams[0]
        counts, lengths = stream.items(0, size)[:, 2], stream.items(0, size)[:, 3]
        assert (lengths == length + 3 * counts).all()
        drawn = np.clip(np.random.default_rng(1).poisson(1.0, 200_000), 1, 16)
        while (over := length + 3 * drawn > row_length).any():
            drawn = drawn - over
        expected = np.bincount(np.minimum(drawn, 4), minlength=5) * (size / len(drawn))
        observed = np.bincount(np.minimum(counts, 4), minlength=5)
        possible = expected > 0
        assert observed[~possible].sum() == 0
        if possible.sum() > 1:
            assert stats.chisquare(observed[possible], expected[possible]).pvalue > 0.001


def test_rows_do_not_depend_on_what_was_asked_before(corpus):
    first = plan(corpus)
    wanted = [first.row(number) for number in range(300)]
    rng = np.random.default_rng(1)
    for _ in range(50):  # 50 random stops: a fresh plan goes on where the run was
        stop = int(rng.integers(0, 299))
        assert plan(corpus).row(stop) == wanted[stop]
    backward = plan(corpus)
    assert [backward.row(number) for number in reversed(range(300))] == wanted[::-1]


def test_epochs_and_seeds_differ_in_order(corpus):
    ours, other = plan(corpus), plan(corpus, seed=1)
    assert [ours.row(n) for n in range(20)] != [other.row(n) for n in range(20)]
    stream = ours.streams[0]
    assert stream.items(0, 200)[:, 1].tolist() != stream.items(200, 400)[:, 1].tolist()


def test_rows_have_room_for_the_masks(corpus):
    ours = plan(corpus, row_length=48)
    lengths = [len(document) for document in corpus]
    for number in range(200):
        assert sum(lengths[entry.index] + 3 * entry.count for entry in ours.row(number)) <= 48


def test_a_document_as_long_as_a_row_is_left_unmasked(make):
    document = make("ii")  # 27 tokens
    for row_length, most in [(27, 0), (29, 0), (30, 1), (33, 2)]:
        ours = RowPlan(Mixture([([document], 1.0)]), ObjectiveConfig(span_rate=16.0), row_length, 4, 0)
        assert {entry.count for number in range(8) for entry in ours.row(number)} == {most}


def test_a_document_that_outgrows_its_row_later_is_never_given_a_negative_length(make):
    class Growing(ListSource):
        def lengths(self, epoch):
            return super().lengths(epoch) + 20 * epoch

    ours = RowPlan(Mixture([(Growing([make("ii")]), 1.0)]), ObjectiveConfig(span_rate=16.0), 30, 1, 0)
    assert ours.streams[0].items(1, 2).tolist() == [[1, 0, 0, 47]]
    with pytest.raises(UsageError, match="a document of 47 tokens does not fit a row of 30"):
        ours.row(1)


def test_parts_keep_their_shares_and_their_own_epochs(corpus):
    causal = ObjectiveConfig(name="causal")
    ours = plan(corpus, parts=[(corpus[:30], 3.0), (corpus, 1.0, causal)], window=40)
    entries = [entry for number in range(400) for entry in ours.row(number)]
    share = np.mean([entry.part == 0 for entry in entries])
    assert share == pytest.approx(0.75, abs=0.02)
    assert {entry.count for entry in entries if entry.part == 1} == {0}
    complete = max(entry.epoch for entry in entries if entry.part == 0) - 2
    for epoch in range(complete):
        assert sorted(e.index for e in entries if e.part == 0 and e.epoch == epoch) == list(range(30))
