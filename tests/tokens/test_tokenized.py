"""The document layout: delimiters, spans, grid positions and weights."""

import numpy as np

from cm3.tokens import Span, Vocab, assemble, grid_positions_of

VOCAB = Vocab(20, 8, (1, 2), num_masks=1)
TEXT = np.array([VOCAB.text_start, VOCAB.text_start + 1])
IMAGE = VOCAB.image_ids(np.array([3, 4]))


def test_layout_of_three_segments():
    document = assemble([("text", TEXT), ("image", IMAGE), ("image", IMAGE)], VOCAB, "d")
    b = VOCAB.break_id
    assert document.token_ids.tolist() == [VOCAB.bos_id, *TEXT, b, *IMAGE, b, *IMAGE, VOCAB.eos_id]
    assert document.token_ids.dtype == document.grid_positions.dtype == np.int64
    assert document.grid_positions.tolist() == [0, 0, 0, 0, 1, 2, 0, 1, 2, 0]
    assert document.spans == (Span("text", 1, 3), Span("image", 4, 6), Span("image", 7, 9))
    assert document.loss_weights.dtype == np.float32
    assert (document.loss_weights == 1).all()


def test_a_segment_weighs_with_the_delimiter_that_closes_it():
    document = assemble([("text", TEXT), ("image", IMAGE)], VOCAB, weights=[0.0, 2.0])
    assert document.loss_weights.tolist() == [1, 0, 0, 0, 2, 2, 2]


def test_no_segment_is_bos_eos():
    document = assemble([], VOCAB)
    assert document.token_ids.tolist() == [VOCAB.bos_id, VOCAB.eos_id]
    assert document.spans == ()


def test_grid_positions_follow_from_the_ids_also_inside_a_picture():
    document = assemble([("image", IMAGE), ("text", TEXT), ("image", IMAGE)], VOCAB)
    for stop in range(len(document) + 1):
        assert np.array_equal(grid_positions_of(document.token_ids[:stop], VOCAB), document.grid_positions[:stop])
