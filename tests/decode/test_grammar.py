"""Walks through every kind of answer, driven by random legal tokens."""

import numpy as np
import pytest

from cm3.core.errors import UsageError
from cm3.decode.grammar import Answer, FreeAnswer, Gap, ImageAnswer, InfillAnswer, PairAnswer, RowWalk, TextAnswer
from cm3.tokens import Vocab


def drive(answer: Answer, vocab: Vocab, seed: int, piece: int = 3) -> tuple[list[int], list[int], str]:
    """Take random legal tokens in random pieces until the walk ends: (ids, grid positions, reason)."""
    rng = np.random.default_rng(seed)
    walk, ids, places = RowWalk(answer, vocab), [], []
    while not walk.done:
        count = int(rng.integers(1, min(piece, walk.remaining) + 1))
        legal = [id_ for start, stop in walk.allowed for id_ in range(start, stop)]
        tokens = [int(token) for token in rng.choice(legal, count)]
        places += walk.grid_positions(count)
        ids += tokens
        walk.advance(tokens)
        assert len(ids) <= answer.max_tokens(vocab)
    return ids, places, walk.reason or ""


@pytest.mark.parametrize("kind", [TextAnswer, PairAnswer, FreeAnswer])
def test_an_answer_of_no_tokens_is_refused(kind) -> None:
    with pytest.raises(UsageError, match="limit must be at least 1, got 0"):
        kind(0)


def test_image_is_exactly_one_grid(vocab: Vocab) -> None:
    ids, places, reason = drive(ImageAnswer(), vocab, 0)
    assert len(ids) == 12
    assert all(vocab.is_image(id_) for id_ in ids)
    assert places == list(range(1, 13))
    assert reason == "stop"
    assert RowWalk(ImageAnswer(), vocab).remaining == 12


@pytest.mark.parametrize("seed", range(20))
def test_text_ends_with_a_closing_token_or_at_the_limit(vocab: Vocab, seed: int) -> None:
    ids, _, reason = drive(TextAnswer(limit=15), vocab, seed)
    content = ids[:-1] if reason == "stop" else ids
    assert content
    assert all(vocab.is_text(id_) for id_ in content)
    assert (ids[-1] in (vocab.eos_id, vocab.break_id)) == (reason == "stop")
    assert reason == "stop" or len(ids) == 15


@pytest.mark.parametrize("seed", range(10))
def test_infill_has_the_layout_of_causal_masking(vocab: Vocab, seed: int) -> None:
    answer = InfillAnswer((Gap("image", (3, 4)), Gap("text", limit=40), Gap("image", (9,))))
    ids, places, reason = drive(answer, vocab, seed)
    assert ids[2:4] == [vocab.eoss_id, vocab.mask_id(1)]
    closing = ids.index(vocab.eoss_id, 4)
    assert ids[closing + 1] == vocab.mask_id(2)
    assert len(ids) == closing + 3
    assert all(vocab.is_text(id_) for id_ in ids[4:closing])
    assert [place for id_, place in zip(ids, places) if vocab.is_image(id_)] == [3, 4, 9]
    assert reason in ("stop", "length")


def test_infill_that_ends_in_text_stops_at_its_eoss(vocab: Vocab) -> None:
    ids, _, reason = drive(InfillAnswer((Gap("text", limit=200),)), vocab, 1)
    assert ids[-1] == vocab.eoss_id
    assert reason == "stop"


@pytest.mark.parametrize("seed", range(30))
def test_free_answers_parse_as_segments(vocab: Vocab, seed: int) -> None:
    ids, places, reason = drive(FreeAnswer(limit=60, max_images=2), vocab, seed)
    body = ids[:-1] if reason == "stop" else ids
    assert (ids[-1] == vocab.eos_id) == (reason == "stop")
    segments, current = [], []
    for id_ in [*body, vocab.break_id]:
        if id_ == vocab.break_id:
            segments.append(current)
            current = []
        else:
            current.append(id_)
    if reason == "stop":
        assert all(segments)
    pictures = [segment for segment in segments if segment and vocab.is_image(segment[0])]
    assert len(pictures) <= 2
    assert all(len(picture) == 12 and all(vocab.is_image(id_) for id_ in picture) for picture in pictures)
    texts = [segment for segment in segments if segment and not vocab.is_image(segment[0])]
    assert all(vocab.is_text(id_) for segment in texts for id_ in segment)
    assert [place for id_, place in zip(ids, places) if vocab.is_image(id_)] == list(range(1, 13)) * len(pictures)


def test_free_answers_begin_no_picture_that_does_not_fit(vocab: Vocab) -> None:
    assert RowWalk(FreeAnswer(limit=11), vocab).allowed == ((vocab.text_start, vocab.text_stop),)
    assert len(RowWalk(FreeAnswer(limit=12), vocab).allowed) == 2
