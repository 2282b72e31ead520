"""Both layouts: what stands between segments, and that every document can be read back."""

import itertools

import numpy as np
import pytest

from cm3.core.errors import InputError, UsageError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.tokens import DocumentTokenizer, Turn, Vocab, encode_prompt, encode_turns, prompt_ids
from cm3.tokens.layout import delimiters, extent, split, split_leniently
from cm3.tokens.tokenized import assemble

BOS, EOS, BREAK, OPEN, CLOSE = 0, 2, 30, 21, 20
ENCLOSED = Vocab(
    text_size=400, codebook_size=16, grid_shape=(2, 3), num_masks=8, bos_id=BOS, pad_id=1, eos_id=EOS, image_start=4,
    image_close_id=CLOSE, image_open_id=OPEN, mask_start=22, break_id=BREAK, eoss_id=31, text_start=40,
)  # fmt: skip
SEPARATED = Vocab(text_size=400, codebook_size=16, grid_shape=(2, 3))
CODES = np.arange(6).reshape(2, 3)


def document(vocab: Vocab, kinds: str):
    contents = {"t": ("text", vocab.text_start + np.array([1, 2])), "i": ("image", vocab.image_ids(np.arange(6)))}
    return assemble([contents[kind] for kind in kinds], vocab)


@pytest.mark.parametrize("vocab", [ENCLOSED, SEPARATED], ids=["enclosed", "separated"])
def test_every_interleaving_comes_back(vocab):
    for kinds in itertools.chain.from_iterable(map("".join, itertools.product("ti", repeat=count)) for count in range(6)):
        tokens = document(vocab, kinds)
        contents = [tokens.token_ids[span.start : span.stop].tolist() for span in tokens.spans]
        assert [span.kind[0] for span in tokens.spans] == list(kinds)
        assert [piece.tolist() for piece in split(tokens.token_ids, vocab)] == contents
        assert [piece.tolist() for piece in split_leniently(tokens.token_ids, vocab)] == contents
        for index, span in enumerate(tokens.spans):  # and a document without one segment is one
            first, stop = extent(tokens.token_ids, span, vocab)
            joins = vocab.image_marks and kinds[max(index - 1, 0) : index + 2] == "tit"
            if (vocab.image_marks or stop < len(tokens)) and not joins:
                left = np.delete(tokens.token_ids, slice(first, stop))
                assert [piece.tolist() for piece in split(left, vocab)] == contents[:index] + contents[index + 1 :]


def test_pictures_stand_between_marks_and_texts_apart():
    ids = document(ENCLOSED, "tiitt").token_ids
    shown = [{BOS: "bos", EOS: "eos", BREAK: "|", OPEN: "<", CLOSE: ">"}.get(id_, "t" if id_ >= 40 else "i") for id_ in ids]
    assert "".join(shown) == "bostt<iiiiii><iiiiii>tt|tteos"
    assert delimiters(SEPARATED, "text", "image") == ((SEPARATED.break_id,), ())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([BOS, 41, OPEN, 4, 5, 6, 7, 8, CLOSE, EOS], "picture of 5 tokens, expected 6"),
        ([BOS, 41, OPEN, 4, 5, 6, 7, 8, 9, EOS], "begins or ends without its mark"),
        ([BOS, 4, 5, 6, 7, 8, 9, CLOSE, EOS], "begins or ends without its mark"),
        ([BOS, OPEN, 4, 5, 6, OPEN, 7, 8, 9, CLOSE, EOS], "begins or ends without its mark"),
        ([BOS, OPEN, CLOSE, EOS], "is empty"),
        ([BOS, 41, 33, EOS], "holds id 33"),
        ([BOS, 41, 22, EOS], "moved spans"),
    ],
)
def test_broken_ids_are_refused_with_what_is_wrong(ids, message):
    with pytest.raises(InputError, match=message):
        split(np.array(ids), ENCLOSED)


def test_one_mark_alone_is_refused():
    with pytest.raises(UsageError, match="belong together"):
        Vocab(text_size=400, codebook_size=16, grid_shape=(2, 3), size=900, image_open_id=800)


@pytest.fixture(scope="module")
def enclosed(text) -> DocumentTokenizer:
    start = text.first_id
    vocab = Vocab(
        text_size=text.vocab_size, codebook_size=16, grid_shape=(2, 3), num_masks=start - 5, text_start=start,
        image_open_id=start + 1000, image_close_id=start + 1001, image_start=start + 1002,
    )  # fmt: skip
    return DocumentTokenizer(vocab, text)


def test_prompts_end_where_the_answer_begins(enclosed):
    vocab = enclosed.vocab
    ask, picture = TextSegment("how many circles?"), ImageSegment(codes=CODES)
    for given, answer in itertools.product(([ask], [picture], [picture, ask], [ask, ask]), (TextSegment("two"), picture)):
        turns = [Turn("user", tuple(given)), Turn("assistant", (answer,), train=True)]
        tokens, prompt = encode_turns(turns, enclosed), encode_prompt(turns, enclosed)
        start = tokens.spans[len(given)].start
        assert prompt.token_ids.tolist() == tokens.token_ids[:start].tolist()
        assert prompt.grid_positions.tolist() == tokens.grid_positions[:start].tolist()
        kind = "text" if answer is not picture else "image"
        assert prompt_ids(turns[:1], enclosed, answer=kind).tolist() == prompt.token_ids.tolist()
        weights = tokens.loss_weights > 0  # the answer with its own marks, nothing of the question
        assert weights.tolist() == [place >= start - (kind == "image") for place in range(len(tokens))]
    assert prompt_ids([Turn("user", (ask,))], enclosed)[-1] == vocab.break_id
    assert prompt_ids([Turn("user", (picture,))], enclosed)[-1] == vocab.image_close_id
    plain = enclosed.decode(enclosed.encode(Document("d", (ask, picture, picture, ask, ask))).token_ids)
    assert [type(segment).__name__[0] for segment in plain.segments] == list("TIITT")
