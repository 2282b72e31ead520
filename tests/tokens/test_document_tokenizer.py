"""Documents to ids and back: any interleaving, in batches, with clear refusals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.tokens import DocumentTokenizer, Vocab, vocab_for

codes = st.lists(st.integers(0, 15), min_size=6, max_size=6).map(lambda values: np.array(values).reshape(2, 3))
segments = st.lists(
    st.text(max_size=12).map(TextSegment)
    | st.just(TextSegment("<break><mask:0>"))
    | codes.map(lambda grid: ImageSegment(codes=grid)),
    max_size=6,
)
CODES = np.arange(6).reshape(2, 3)


def plain(document: Document) -> list:
    return [s.text if isinstance(s, TextSegment) else s.codes.tolist() for s in document.segments]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(segments)
def test_decode_inverts_encode_for_any_interleaving(tokenizer, parts):
    document = Document("d", tuple(parts))
    tokens = tokenizer.encode(document)
    assert plain(tokenizer.decode(tokens.token_ids)) == plain(document)
    assert plain(tokenizer.decode(tokens.token_ids, strict=False)) == plain(document)
    assert [span.kind for span in tokens.spans] == ["text" if isinstance(s, TextSegment) else "image" for s in parts]


def test_many_equals_one_by_one_and_batches_the_pictures(vocab, text, image_tokenizer, picture):
    tokenizer = DocumentTokenizer(vocab, text, image_tokenizer)
    documents = [Document.pair(str(n), f"circle {n}", picture(CODES + n)) for n in range(7)]
    many = list(tokenizer.encode_many(documents, batch_size=5))
    assert image_tokenizer.batches == [5, 2]
    for document, tokens in zip(documents, many):
        assert tokens.id == document.id
        assert np.array_equal(tokens.token_ids, tokenizer.encode(document).token_ids)
    assert tokenizer.decode(many[3].token_ids).images[0].codes.tolist() == (CODES + 3).tolist()


def test_codes_are_used_before_pixels(vocab, text, image_tokenizer, picture):
    tokenizer = DocumentTokenizer(vocab, text, image_tokenizer)
    tokens = tokenizer.encode(Document("d", (ImageSegment(image=picture(CODES), codes=CODES + 1),)))
    assert vocab.codes(tokens.token_ids[1:-1]).tolist() == (CODES + 1).reshape(-1).tolist()
    assert image_tokenizer.batches == []


def test_pictures_are_decoded_only_when_asked_for(vocab, text, image_tokenizer, picture):
    tokenizer = DocumentTokenizer(vocab, text, image_tokenizer)
    ids = tokenizer.encode(Document.pair("d", "circle", picture(CODES))).token_ids
    assert tokenizer.decode(ids).images[0].image is None
    shown = tokenizer.decode(ids, images=True).images[0]
    assert np.asarray(shown.image)[..., 0].tolist() == (CODES * 16).tolist()
    assert tokenizer.decode([vocab.bos_id, vocab.eos_id], images=True).segments == ()
    with pytest.raises(UsageError, match="needs an image tokenizer"):
        DocumentTokenizer(vocab, text).decode(ids, images=True)


def test_a_bad_document_is_named_or_handed_over(tokenizer, tmp_path):
    missing = Document("bad", (TextSegment("x"), ImageSegment(path=tmp_path / "none.png")))
    surrogate = Document("worse", (TextSegment("\ud800"),))
    good = Document("good", (TextSegment("circle"),))
    with pytest.raises(InputError, match="document 'worse'"):
        list(tokenizer.encode_many([good, surrogate]))
    rejected = []
    kept = list(tokenizer.encode_many([missing, good, surrogate], on_reject=lambda document, error: rejected.append(document.id)))
    assert rejected == ["bad", "worse"]
    assert [document.id for document in kept] == ["good"]


def test_a_picture_without_codes_needs_an_image_tokenizer(tokenizer, picture):
    with pytest.raises(UsageError, match="needs an image tokenizer"):
        tokenizer.encode(Document.pair("d", "x", picture(CODES)))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (CODES.T, "shape"),
        (CODES + 11, "0..15"),
        (CODES - 1, "0..15"),
        (CODES / 2, "dtype"),
    ],
)
def test_impossible_codes_are_refused(tokenizer, bad, message):
    with pytest.raises(InputError, match=message):
        tokenizer.encode(Document("d", (ImageSegment(codes=bad),)))


def broken(vocab: Vocab) -> dict[str, tuple[list[int], str]]:
    b, e, br = vocab.bos_id, vocab.eos_id, vocab.break_id
    t, i = vocab.text_start, vocab.image_start
    return {
        "empty": ([], "whole document"),
        "no start": ([t, e], "whole document"),
        "no end": ([b, t], "whole document"),
        "short picture": ([b, i, i, i, e], "picture of 3 tokens, expected 6"),
        "long picture": ([b, *[i] * 7, e], "picture of 7 tokens"),
        "two breaks": ([b, t, br, br, t, e], "segment 1 of the token ids is empty"),
        "mixed": ([b, t, i, e], "mixes text and picture"),
        "padding inside": ([b, t, vocab.pad_id, e], "id 0, which is neither"),
        "moved spans": ([b, vocab.mask_id(0), vocab.mask_id(0), t, vocab.eoss_id, e], "moved spans"),
        "out of range": ([b, t, vocab.size + 5, e], "neither text nor a picture"),
    }


def test_broken_ids_are_refused_with_what_is_wrong(tokenizer, vocab):
    for ids, message in broken(vocab).values():
        with pytest.raises(InputError, match=message):
            tokenizer.decode(ids)
        tokenizer.decode(ids, strict=False)  # whatever is whole, never an error


def test_lenient_decoding_keeps_what_is_whole(tokenizer, vocab, text):
    picture_ids = vocab.image_ids(CODES.reshape(-1)).tolist()
    words = text.encode("circle")
    ids = [vocab.bos_id, *words, vocab.break_id, *picture_ids, vocab.break_id, *picture_ids[:4]]
    assert plain(tokenizer.decode(ids, strict=False)) == ["circle", CODES.tolist()]
    assert plain(tokenizer.decode([*ids[:3], vocab.eos_id, *words], strict=False)) == ["circle"]


def test_save_load_and_fingerprint(tokenizer, vocab, text, tmp_path):
    tokenizer.save(tmp_path)
    again = DocumentTokenizer.load(tmp_path)
    assert (again.vocab, again.fingerprint) == (vocab, tokenizer.fingerprint)
    layout = json.loads((tmp_path / "token_layout.json").read_text())
    (tmp_path / "token_layout.json").write_text(json.dumps({**layout, "image_start": 3}))
    with pytest.raises(ArtefactError, match="not a token layout"):
        DocumentTokenizer.load(tmp_path)


def test_parts_that_do_not_belong_together_are_refused(vocab, text, image_tokenizer):
    with pytest.raises(ArtefactError, match="text tokenizer has ids"):
        DocumentTokenizer(Vocab(text.vocab_size - 1, 16, (2, 3)), text)
    with pytest.raises(ArtefactError, match="codebook_size=16"):
        DocumentTokenizer(vocab_for(text, 17, (2, 3)), text, image_tokenizer)
