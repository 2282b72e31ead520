"""Turning a pair around."""

import numpy as np

from cm3.sequences.augmentation import augment
from cm3.sequences.ordering import image_first, reorder


def test_a_pair_is_turned_around_with_its_weights(vocab, make):
    document = make("ti", 1)
    turned = reorder(document, (1, 0), vocab)
    assert [span.kind for span in turned.spans] == ["image", "text"]
    for old, new in zip(document.spans, reversed(turned.spans)):
        for name in ("token_ids", "grid_positions", "loss_weights"):
            assert np.array_equal(getattr(document, name)[old.start : old.stop], getattr(turned, name)[new.start : new.stop])
    assert turned.loss_weights[[0, 13, -1]].tolist() == document.loss_weights[[0, 7, -1]].tolist()
    back = reorder(turned, (1, 0), vocab)
    assert np.array_equal(back.token_ids, document.token_ids)
    assert np.array_equal(back.loss_weights, document.loss_weights)


def test_the_probability_holds_and_only_for_text_image_pairs(vocab, make):
    # 2000 draws at 0.3: outside ±0.05 with a probability below 1e-5
    rng = np.random.default_rng(0)
    turned = [image_first(make("ti", 1), vocab, rng, 0.3).spans[0].kind == "image" for _ in range(2000)]
    assert 0.25 < np.mean(turned) < 0.35
    for kinds in ("it", "t", "tit"):
        document = make(kinds)
        assert image_first(document, vocab, rng, 1.0) is document
    behind_a_neighbor = augment(make("ti", 1), [make("ti", 2)], vocab, 100)
    assert image_first(behind_a_neighbor, vocab, rng, 1.0) is behind_a_neighbor
