"""Fill-in-the-middle: at most one span, in a fixed share of the documents."""

import numpy as np

from cm3.sequences import OBJECTIVES, ObjectiveConfig, restore

fill = OBJECTIVES.get("fill_in_middle")


def test_the_share_of_changed_documents():
    # 4000 draws at 0.25: outside ±0.04 with a probability below 1e-8
    counts = fill.counts(4000, np.random.default_rng(0), ObjectiveConfig(name="fill_in_middle", fill_rate=0.25))
    assert set(counts.tolist()) == {0, 1}
    assert 0.21 < counts.mean() < 0.29


def test_one_span_moves_to_the_end(vocab, make):
    document = make("ti", 1)
    config = ObjectiveConfig(name="fill_in_middle", fill_rate=1.0)
    for seed in range(20):
        masked = fill(document, vocab, np.random.default_rng(seed), config)
        assert vocab.is_mask(masked.token_ids).sum() in (0, 2)
        assert np.array_equal(restore(masked.token_ids, vocab), document.token_ids)
    assert fill(document, vocab, np.random.default_rng(0), ObjectiveConfig(name="fill_in_middle", fill_rate=0.0)) is document
