"""Turns: one function for training and prompting, and the loss on the response with what closes it."""

import numpy as np
import pytest

from cm3.core.errors import UsageError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.tokens import Turn, encode_prompt, encode_turns, prompt_ids

CODES = np.arange(6).reshape(2, 3)
ASK = Turn("user", (ImageSegment(codes=CODES), TextSegment("how many circles?")))
SAY = Turn("assistant", (TextSegment("two"), ImageSegment(codes=CODES)), train=True)


def test_turns_are_a_document_of_all_segments(tokenizer):
    tokens = encode_turns([ASK, SAY], tokenizer, "t")
    plain = tokenizer.encode(Document("t", ASK.segments + SAY.segments))
    assert tokens.token_ids.tolist() == plain.token_ids.tolist()
    assert (tokens.id, tokens.spans) == ("t", plain.spans)


def test_the_loss_lies_on_trained_turns_and_what_closes_them(tokenizer, vocab):
    tokens = encode_turns([ASK, SAY, ASK, SAY], tokenizer)
    first_answer, second_answer = tokens.spans[2], tokens.spans[6]
    trained = np.zeros(len(tokens), bool)
    trained[first_answer.start : tokens.spans[3].stop + 1] = True  # its inner <break> and the one that closes it
    trained[second_answer.start :] = True  # up to and with <eos>
    assert (tokens.loss_weights > 0).tolist() == trained.tolist()
    assert tokens.token_ids[tokens.spans[3].stop] == vocab.break_id
    assert tokens.loss_weights[first_answer.start - 1] == 0  # the <break> that closes the question is given


@pytest.mark.parametrize("turns", [[ASK, SAY], [SAY], [ASK, ASK, SAY, ASK, SAY]])
def test_the_prompt_is_the_training_sequence_cut_at_the_first_trained_token(tokenizer, turns):
    tokens, prompt = encode_turns(turns, tokenizer), encode_prompt(turns, tokenizer)
    first = int(np.flatnonzero(tokens.loss_weights)[0])
    assert prompt.token_ids.tolist() == tokens.token_ids[:first].tolist()
    assert prompt.grid_positions.tolist() == tokens.grid_positions[:first].tolist()
    assert prompt_ids(turns, tokenizer).tolist() == prompt.token_ids.tolist()


def test_without_a_trained_turn_everything_is_prompt(tokenizer, vocab):
    assert prompt_ids([ASK], tokenizer).tolist() == prompt_ids([ASK, SAY], tokenizer).tolist()
    assert prompt_ids([ASK], tokenizer)[-1] == vocab.break_id
    assert prompt_ids([], tokenizer).tolist() == [vocab.bos_id]


def test_an_empty_turn_is_refused(tokenizer):
    with pytest.raises(UsageError, match="turn 1"):
        encode_turns([ASK, Turn("assistant", (), train=True)], tokenizer)
