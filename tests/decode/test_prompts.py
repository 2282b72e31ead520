"""Prompts come from the functions that make training sequences, and lose their condition in the trained form."""

import numpy as np
import pytest

from cm3.core.errors import InputError
from cm3.decode.grammar import Gap
from cm3.decode.prompts import continuation, document_start, fill, infilling, unconditional_image
from cm3.sequences import mask_spans, restore
from cm3.tokens import TokenizedDocument, Vocab, assemble


def text(vocab: Vocab, length: int) -> tuple[str, np.ndarray]:
    return "text", vocab.text_start + np.arange(length)


def image(vocab: Vocab) -> tuple[str, np.ndarray]:
    return "image", vocab.image_start + np.arange(vocab.num_image_tokens)


def cut(document: TokenizedDocument, vocab: Vocab) -> TokenizedDocument:
    """As `encode_prompt` cuts: the closing `<eos>` is where the answer begins."""
    document.token_ids[-1] = vocab.break_id
    return document


def test_edit_prompt_without_text_keeps_the_picture(vocab: Vocab) -> None:
    document = cut(assemble([image(vocab), text(vocab, 4)], vocab), vocab)
    prompt = continuation(document, vocab)
    stream = prompt.without("text")
    assert stream.token_ids.tolist() == [*document.token_ids[:14], vocab.mask_id(0), vocab.break_id]
    assert stream.grid_positions.tolist() == [0, *range(1, 13), 0, 0, 0]
    assert prompt.unconditional().token_ids.tolist() == [vocab.bos_id, vocab.mask_id(0), vocab.break_id]
    without_image = prompt.without("image")
    assert without_image.token_ids.tolist() == [vocab.bos_id, vocab.mask_id(0), vocab.break_id, *document.token_ids[14:]]
    assert not without_image.grid_positions.any()


def test_retrieved_documents_leave_with_the_condition(vocab: Vocab) -> None:
    document = cut(assemble([text(vocab, 3), image(vocab), text(vocab, 2)], vocab), vocab)
    prompt = continuation(document, vocab, context_segments=2)
    assert prompt.stream().token_ids.tolist() == document.token_ids.tolist()
    assert prompt.without("text").token_ids.tolist() == [vocab.bos_id, vocab.mask_id(0), vocab.break_id]


def masked_pair(vocab: Vocab) -> tuple[TokenizedDocument, TokenizedDocument]:
    document = assemble([text(vocab, 3), image(vocab)], vocab)
    first = document.spans[1].start
    return document, mask_spans(document, [(first + 2, first + 4), (first + 6, first + 8)], vocab)


def test_infilling_prompt_and_gaps(vocab: Vocab) -> None:
    _, masked = masked_pair(vocab)
    prompt, answer = infilling(masked, vocab)
    assert answer.gaps == (Gap("image", (3, 4)), Gap("image", (7, 8)))
    assert prompt.token_ids[-1] == vocab.mask_id(0)
    assert prompt.token_ids.tolist() == masked.token_ids[: len(prompt.token_ids)].tolist()
    without = prompt.without("text")
    assert without.token_ids.tolist() == [vocab.bos_id, *prompt.token_ids[5:]]
    assert without.grid_positions.tolist() == [0, *prompt.grid_positions[5:]]


def test_filling_with_the_original_tokens_restores_the_document(vocab: Vocab) -> None:
    document, masked = masked_pair(vocab)
    prompt, _ = infilling(masked, vocab)
    original = masked.token_ids[len(prompt.token_ids) : -2]
    assert fill(masked, original, vocab).tolist() == masked.token_ids.tolist()
    assert restore(fill(masked, original, vocab), vocab).tolist() == document.token_ids.tolist()


def test_filling_a_text_gap_of_another_length(vocab: Vocab) -> None:
    document = assemble([text(vocab, 5), image(vocab)], vocab)
    masked = mask_spans(document, [(2, 4)], vocab)
    new = vocab.text_start + np.array([9, 9, 9])
    for answer_ids in (new, np.append(new, vocab.eoss_id)):
        filled = restore(fill(masked, answer_ids, vocab), vocab)
        assert filled.tolist() == [*document.token_ids[:2], *new, *document.token_ids[4:]]


def test_nothing_masked_is_refused(vocab: Vocab) -> None:
    with pytest.raises(InputError, match="nothing is masked"):
        infilling(assemble([image(vocab)], vocab), vocab)


def test_starts(vocab: Vocab) -> None:
    assert document_start(vocab).token_ids.tolist() == [vocab.bos_id]
    assert unconditional_image(vocab).token_ids.tolist() == [vocab.bos_id, vocab.mask_id(0), vocab.break_id]
