"""Neighbors before the target: whole ones, within the budget, with their own weight."""

import numpy as np
import pytest
from scipy import stats

from cm3.core.errors import UsageError
from cm3.sequences import LoaderConfig, ObjectiveConfig, SequenceLoader
from cm3.sequences.augmentation import AugmentationConfig, AugmentedSource, augment, draw_neighbors
from cm3.sequences.sources import ListSource
from cm3.tokens import grid_positions_of


def test_the_layout_is_one_document(vocab, make):
    target, first, second = make("ti", 1), make("it", 2), make("t", 3)
    joined = augment(target, [first, second], vocab, 500, 0.5)
    b = vocab.break_id
    expected = [*first.token_ids[:-1], b, *second.token_ids[1:-1], b, *target.token_ids[1:]]
    assert joined.token_ids.tolist() == [int(id_) for id_ in expected]
    assert (joined.token_ids == vocab.eos_id).sum() == (joined.token_ids == vocab.bos_id).sum() == 1
    assert [span.kind for span in joined.spans] == ["image", "text", "text", "text", "image"]
    assert np.array_equal(joined.grid_positions, grid_positions_of(joined.token_ids, vocab))
    parts = [(first.spans, first), (second.spans, second), (target.spans, target)]
    originals = [document.token_ids[s.start : s.stop].tolist() for spans, document in parts for s in spans]
    assert [joined.token_ids[s.start : s.stop].tolist() for s in joined.spans] == originals


def test_neighbors_weigh_alpha(vocab, make):
    target, neighbor = make("ti", 1), make("it", 2)
    joined = augment(target, [neighbor], vocab, 500, 0.25)
    border = len(neighbor)
    assert joined.loss_weights[1:border].tolist() == (neighbor.loss_weights[1:] * np.float32(0.25)).tolist()
    assert joined.loss_weights[border:].tolist() == target.loss_weights[1:].tolist()


def test_neighbors_that_do_not_fit_are_dropped_whole(vocab, make):
    target, large, small = make("t", 1), make("ii", 2), make("t", 3)
    room = len(target) + len(small) - 1
    assert (
        augment(target, [large, small], vocab, room).token_ids.tolist() == augment(target, [small], vocab, 500).token_ids.tolist()
    )
    assert augment(target, [large, small], vocab, room - 1) is target
    assert augment(target, [], vocab, 500) is target
    with pytest.raises(UsageError, match="more than max_length"):
        augment(target, [], vocab, len(target) - 1)


def test_cm3leon_picks_three_at_random_and_ra_cm3_the_nearest_few():
    # fixed seed; false failures of the chi-square test: one in 1000 seeds
    table = np.tile(np.arange(4), (8000, 1))
    leon = draw_neighbors(table, np.random.default_rng(0), "cm3leon")
    assert ((leon >= 0).sum(axis=1) == 3).all()
    assert stats.chisquare((leon < 0).sum(axis=0)).pvalue > 0.001
    ra = draw_neighbors(table, np.random.default_rng(0), "ra_cm3")
    counts = (ra >= 0).sum(axis=1)
    assert stats.chisquare(np.bincount(counts, minlength=3)).pvalue > 0.001
    assert {tuple(row) for row in ra.tolist()} == {(-1, -1, -1, -1), (0, -1, -1, -1), (0, 1, -1, -1)}
    assert np.array_equal(draw_neighbors(table, np.random.default_rng(0), "all"), table)


def test_missing_neighbors_are_never_drawn():
    table = np.array([[5, -1, 7, -1], [-1, -1, -1, -1]])
    for law in ("cm3leon", "ra_cm3", "all"):
        for seed in range(10):
            drawn = draw_neighbors(table, np.random.default_rng(seed), law)
            assert set(drawn[0].tolist()) <= {5, 7, -1}
            assert (drawn[1] == -1).all()


def test_an_augmented_source_knows_its_lengths_before_it_is_read(vocab, corpus):
    table = np.random.default_rng(0).integers(-1, 200, (200, 4))
    config = AugmentationConfig(law="cm3leon", neighbor_weight=0.1, max_length=90)
    source = AugmentedSource(ListSource(corpus), ListSource(corpus), table, vocab, config, seed=0)
    for epoch in (0, 1):
        lengths = source.lengths(epoch)
        assert [len(source.document(index, epoch)) for index in range(200)] == lengths.tolist()
        assert lengths.max() <= 90
    assert source.lengths(0).tolist() != source.lengths(1).tolist()
    assert len(source) == 200
    loader = SequenceLoader(source, vocab, LoaderConfig(row_length=96, batch_size=4, objective=ObjectiveConfig(span_rate=3.0)), 0)
    assert loader.batch(9).tokens.shape == (4, 96)


def test_a_table_of_another_size_is_refused(vocab, corpus):
    with pytest.raises(UsageError, match=r"shape \(3, 2\)"):
        AugmentedSource(ListSource(corpus), ListSource(corpus), np.zeros((3, 2), int), vocab, AugmentationConfig(), 0)
