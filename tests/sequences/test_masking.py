"""Moving spans behind the source: the layout, nothing lost, an exact inverse."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.core.errors import InputError, UsageError
from cm3.sequences import mask_spans, restore, restore_order
from cm3.tokens import Span, grid_positions_of

many = settings(deadline=None, max_examples=80, derandomize=True)


@st.composite
def span_sets(draw, make):
    """A document and up to 16 separate spans, each inside a segment (also neighboring ones, also whole segments)."""
    document = make(draw(st.text("ti", min_size=1, max_size=5)), draw(st.integers(0, 999)))
    spans = []
    for segment in document.spans:
        cuts = draw(st.lists(st.integers(segment.start, segment.stop), max_size=6, unique=True).map(sorted))
        spans += [pair for pair in pairwise(cuts) if draw(st.booleans())]
    return document, spans[:16]


def test_the_layout_by_hand(vocab, make):
    document = make("ti", 1)
    (text, image), ids = document.spans, document.token_ids.tolist()
    assert (text, image) == (Span("text", 1, 7), Span("image", 8, 20))  # seed 1 draws a text of six tokens
    masked = mask_spans(document, [(3, 5), (10, 20)], vocab)
    m0, m1, end = vocab.mask_id(0), vocab.mask_id(1), vocab.eoss_id
    expected = [*ids[:3], m0, *ids[5:10], m1, m0, *ids[3:5], end, m1, *ids[10:20], end, ids[20]]
    assert masked.token_ids.tolist() == expected
    assert masked.spans == (Span("text", 1, 6), Span("image", 7, 10), Span("text", 11, 13), Span("image", 15, 25))


@many
@given(st.data())
def test_nothing_is_lost_and_the_inverse_restores(vocab, make, data):
    document, spans = data.draw(span_sets(make))
    masked = mask_spans(document, spans, vocab)
    assert len(masked) == len(document) + 3 * len(spans)
    added = Counter({vocab.mask_id(index): 2 for index in range(len(spans))}) + Counter({vocab.eoss_id: len(spans)})
    assert Counter(masked.token_ids.tolist()) == Counter(document.token_ids.tolist()) + added
    assert np.array_equal(restore(masked.token_ids, vocab), document.token_ids)
    order = restore_order(masked.token_ids, vocab)
    assert np.array_equal(masked.grid_positions[order], document.grid_positions)
    assert np.array_equal(masked.loss_weights[order], document.loss_weights)


@many
@given(st.data())
def test_grid_positions_and_spans_follow_the_tokens(vocab, make, data):
    document, spans = data.draw(span_sets(make))
    masked = mask_spans(document, spans, vocab)
    assert ((masked.grid_positions > 0) == vocab.is_image(masked.token_ids)).all()
    moved = masked.spans[len(document.spans) :]
    assert [masked.token_ids[s.start : s.stop].tolist() for s in moved] == [document.token_ids[a:b].tolist() for a, b in spans]
    for span in masked.spans:
        inside = masked.token_ids[span.start : span.stop]
        belongs = vocab.is_image(inside) if span.kind == "image" else vocab.is_text(inside)
        assert (belongs | vocab.is_mask(inside)).all()
    source_ends = masked.spans[len(document.spans) - 1].stop
    closed = masked.token_ids[[s.stop for s in masked.spans[: len(document.spans) - 1]]]
    assert (closed == vocab.break_id).all()
    assert masked.token_ids[source_ends] in (vocab.eos_id, vocab.mask_id(0))


def test_weights_of_what_is_inserted(vocab, make):
    document = make("i", 3)
    spans = [(2, 5), (7, 8)]
    zero, one = mask_spans(document, spans, vocab), mask_spans(document, spans, vocab, sentinel_weight=1.0)
    is_mask, is_end = vocab.is_mask(zero.token_ids), zero.token_ids == vocab.eoss_id
    assert (zero.loss_weights[is_mask] == 0).all()
    assert one.loss_weights[is_mask].tolist() == document.loss_weights[[2, 7, 2, 7]].tolist()
    assert zero.loss_weights[is_end].tolist() == document.loss_weights[[4, 7]].tolist()
    assert zero.loss_weights[-1] == document.loss_weights[-1]


def test_source_weight_leaves_only_the_filling(vocab, make):
    document = make("ti", 4)
    masked = mask_spans(document, [(document.spans[1].start, document.spans[1].stop)], vocab, source_weight=0.0)
    assert np.flatnonzero(masked.loss_weights).tolist() == list(range(len(masked) - 14, len(masked)))  # span, <eoss>, <eos>


def test_no_span_is_no_change(vocab, make):
    document = make("ti")
    assert mask_spans(document, [], vocab) is document
    assert np.array_equal(restore(document.token_ids, vocab), document.token_ids)


def test_the_document_itself_is_never_written_to(vocab, make):
    document = make("ti", 5)
    before = [array.copy() for array in (document.token_ids, document.grid_positions, document.loss_weights)]
    mask_spans(document, [(1, 2)], vocab)
    for kept, now in zip(before, (document.token_ids, document.grid_positions, document.loss_weights)):
        assert np.array_equal(kept, now)
    assert np.array_equal(grid_positions_of(document.token_ids, vocab), document.grid_positions)


@pytest.mark.parametrize("spans", [[(3, 3)], [(4, 3)], [(2, 5), (4, 6)], [(5, 6), (2, 3)]])
def test_empty_overlapping_or_unsorted_spans_are_refused(vocab, make, spans):
    with pytest.raises(UsageError, match="empty or overlaps"):
        mask_spans(make("i"), spans, vocab)


def test_spans_across_a_boundary_are_refused(vocab, make):
    document = make("ti", 1)
    edge = document.spans[0].stop
    for span in [(edge - 1, edge + 1), (edge, edge + 1), (0, 2), (len(document) - 2, len(document))]:
        with pytest.raises(UsageError, match="inside one segment"):
            mask_spans(document, [span], vocab)


def test_more_spans_than_sentinels_are_refused(vocab, make):
    with pytest.raises(UsageError, match="num_masks=16"):
        mask_spans(make("ii"), [(1 + n, 2 + n) for n in range(17)], vocab)


def test_restoring_something_unfinished_is_refused(vocab, make):
    masked = mask_spans(make("i"), [(2, 5), (7, 8)], vocab).token_ids
    for broken in (masked[:-3], np.delete(masked, 2), np.where(masked == vocab.mask_id(1), vocab.mask_id(2), masked)):
        with pytest.raises(InputError, match="do not pair up"):
            restore(broken, vocab)
