"""The CM3 objective as a whole: an invertible rearrangement whose size is known beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.core.errors import UsageError
from cm3.sequences import OBJECTIVES, ObjectiveConfig, restore

cm3 = OBJECTIVES.get("cm3")


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.text("ti", min_size=1, max_size=5), st.integers(0, 10**6), st.sampled_from(["cm3", "metaseq"]), st.floats(0, 1))
def test_every_result_can_be_restored(vocab, make, kinds, seed, law, whole):
    document = make(kinds, seed % 50)
    config = ObjectiveConfig(count_law=law, whole_segment_prob=whole, span_rate=2.0)
    masked = cm3(document, vocab, np.random.default_rng(seed), config)
    assert np.array_equal(restore(masked.token_ids, vocab), document.token_ids)
    assert masked.token_ids[0] == vocab.bos_id
    assert masked.token_ids[-1] == vocab.eos_id


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(0, 16), st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0]))
def test_a_given_count_bounds_the_length(vocab, make, count, seed, whole):
    document = make("titi", seed % 50)
    config = ObjectiveConfig(whole_segment_prob=whole)
    masked = cm3(document, vocab, np.random.default_rng(seed), config, count)
    assert len(document) <= len(masked) <= len(document) + 3 * count


def test_the_same_generator_gives_the_same_mask(vocab, make):
    one, two = (cm3(make("ti"), vocab, np.random.default_rng(5), ObjectiveConfig()) for _ in range(2))
    assert np.array_equal(one.token_ids, two.token_ids)


def test_a_whole_text_segment_trains_the_stream_that_guidance_subtracts(vocab, make):
    document = make("ti", 1)
    masked = cm3(document, vocab, np.random.default_rng(0), ObjectiveConfig(whole_segment_prob=1.0))
    picture = document.token_ids[8:20].tolist()
    assert masked.token_ids[:15].tolist() == [vocab.bos_id, vocab.mask_id(0), vocab.break_id, *picture]
    without_text = cm3(make("i"), vocab, np.random.default_rng(1), ObjectiveConfig(whole_segment_prob=1.0))
    assert vocab.is_mask(without_text.token_ids).sum() >= 2  # no text to mask: spans as usual


def test_sentinel_weight(vocab, make):
    for weight in (0, 1):
        masked = cm3(make("ti"), vocab, np.random.default_rng(0), ObjectiveConfig(sentinel_weight=weight))
        assert ((masked.loss_weights[vocab.is_mask(masked.token_ids)] > 0) == bool(weight)).all()


def test_objectives_are_found_by_name():
    assert OBJECTIVES.names() == ["causal", "cm3", "fill_in_middle"]
    with pytest.raises(UsageError, match="did you mean 'cm3'"):
        OBJECTIVES.get("cm4")
