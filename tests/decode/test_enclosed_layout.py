"""Decoding in a vocabulary that encloses pictures between marks, as Chameleon's does."""

import numpy as np
import pytest

from cm3.decode import FreeAnswer, TextAnswer, continuation, unconditional_image
from cm3.decode.grammar import RowWalk
from cm3.tokens import Vocab
from cm3.tokens.layout import split
from cm3.tokens.tokenized import assemble

BOS, EOS, BREAK, OPEN, CLOSE = 0, 2, 30, 21, 20
VOCAB = Vocab(
    text_size=400, codebook_size=16, grid_shape=(2, 3), num_masks=8, bos_id=BOS, pad_id=1, eos_id=EOS, image_start=4,
    image_close_id=CLOSE, image_open_id=OPEN, mask_start=22, break_id=BREAK, eoss_id=31, text_start=40,
)  # fmt: skip
TEXT, IMAGE = ("text", np.array([41, 42])), ("image", np.arange(4, 10))


def prompt_of(*segments, closing=(BREAK,)):
    document = assemble(segments, VOCAB)
    ids = np.array([*document.token_ids[: document.spans[-1].stop], *closing])
    grid = np.concatenate([document.grid_positions[: document.spans[-1].stop], np.zeros(len(closing), np.int64)])
    return type(document)("p", ids, grid, document.spans, np.zeros(len(ids), np.float32))


def test_streams_without_a_condition_are_chameleons_own():
    asked = continuation(prompt_of(TEXT, closing=(OPEN,)), VOCAB)
    assert asked.without("text").token_ids.tolist() == [BOS, OPEN]
    assert asked.unconditional().token_ids.tolist() == unconditional_image(VOCAB).token_ids.tolist() == [BOS, OPEN]
    edit = continuation(prompt_of(IMAGE, TEXT, closing=(OPEN,)), VOCAB)
    assert edit.without("text").token_ids.tolist() == [BOS, OPEN, *range(4, 10), CLOSE, OPEN]
    assert edit.without("image").token_ids.tolist() == [BOS, 41, 42, OPEN]
    question = continuation(prompt_of(IMAGE, TEXT), VOCAB)
    assert question.without("text").token_ids.tolist() == [BOS, OPEN, *range(4, 10), CLOSE]


def test_retrieved_documents_go_with_their_marks():
    joined = prompt_of(IMAGE, TEXT, IMAGE, TEXT, closing=(OPEN,))
    asked = continuation(joined, VOCAB, context_segments=2)
    assert asked.without("image").token_ids.tolist() == [BOS, 41, 42, OPEN]


@pytest.mark.parametrize("seed", range(20))
def test_free_answers_are_documents(seed):
    rng = np.random.default_rng(seed)
    answer = FreeAnswer(limit=40, max_images=2)
    walk, drawn = RowWalk(answer, VOCAB), []
    while not walk.done:
        legal = np.concatenate([np.arange(start, min(stop, start + 3)) for start, stop in walk.allowed])
        token = int(rng.choice(legal))
        drawn.append(token)
        walk.advance([token])
    assert len(drawn) <= answer.max_tokens(VOCAB)
    assert drawn.count(OPEN) <= 2
    if walk.reason == "stop":
        pieces = split(np.array([BOS, *drawn]), VOCAB)
        assert sum(VOCAB.is_image(int(piece[0])) for piece in pieces) == drawn.count(OPEN)


def test_a_text_answer_ends_before_a_picture():
    walk = RowWalk(TextAnswer(), VOCAB)
    walk.advance([41])
    assert (OPEN, OPEN + 1) in walk.allowed
    walk.advance([OPEN])
    assert walk.reason == "stop"
