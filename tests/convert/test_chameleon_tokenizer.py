"""Chameleon's vocabulary as ours: the same ids, every document back, no special id out of a text."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from cm3.convert.chameleon_tokenizer import foreign_tokenizer, image_token_name, read_tokenizer
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, vocab_for

CODES, GRID = 16, (2, 2)
CORPUS = ["a large red circle left of a blue square", "two green circles, one blue triangle.", "how many circles?  12"]
SPECIALS = ["<s>", "</s>", "IMGIMGAZ", "IMGIMGBFZ", "<racm3:break>", "<eoss>", "<sentinel:3>", "<reserved08706>"]


@pytest.fixture(scope="module")
def tokenizer(released_tokenizer, tmp_path_factory) -> DocumentTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    released_tokenizer.save(str(path))
    return read_tokenizer(path, CODES, GRID, released_tokenizer.get_vocab_size())


def test_ids_are_the_released_ones(tokenizer, released_tokenizer):
    vocab, ids = tokenizer.vocab, released_tokenizer.get_vocab()
    names = {"pad_id": "<pad>", "bos_id": "<s>", "eos_id": "</s>", "image_open_id": "<racm3:break>", "image_close_id": "<eoss>"}
    assert {role: getattr(vocab, role) for role in names} == {role: ids[name] for role, name in names.items()}
    assert [vocab.mask_id(i) for i in range(vocab.num_masks)] == [ids[f"<sentinel:{i}>"] for i in range(8)]
    mapping = ChameleonImageVocabularyMapping({**ids, "<image>": 0})
    assert {code: int(vocab.image_ids(code)) for code in range(CODES)} == mapping.img2bpe
    assert [image_token_name(code) for code in (0, 7, 8191)] == ["IMGIMGAZ", "IMGIMGHZ", "IMGIMGIBJBZ"]
    for text in (*CORPUS, "  two  spaces\tünïcode\n12"):
        assert tokenizer.text.encode(text) == released_tokenizer.encode(text).ids


segments = st.lists(
    st.text(min_size=1, max_size=12).map(TextSegment)
    | st.sampled_from(SPECIALS).map(TextSegment)
    | st.lists(st.integers(0, CODES - 1), min_size=4, max_size=4).map(lambda v: ImageSegment(codes=np.reshape(v, GRID))),
    max_size=6,
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(segments)
def test_every_document_comes_back_and_texts_hold_text_ids_alone(tokenizer, parts):
    tokens = tokenizer.encode(Document("d", tuple(parts)))
    back = tokenizer.decode(tokens.token_ids)
    assert [s.text if isinstance(s, TextSegment) else s.codes.tolist() for s in back.segments] == [
        s.text if isinstance(s, TextSegment) else s.codes.tolist() for s in parts
    ]
    for span in tokens.spans:
        content = tokens.token_ids[span.start : span.stop]
        assert (tokenizer.vocab.is_text(content) if span.kind == "text" else tokenizer.vocab.is_image(content)).all()


def test_an_empty_text_has_no_token(tokenizer):
    with pytest.raises(InputError, match="a text is empty"):
        tokenizer.encode(Document("d", (TextSegment(""),)))


def test_back_to_the_released_file(tokenizer, released_tokenizer):
    raw = foreign_tokenizer(tokenizer, "<image>")
    back = Tokenizer.from_str(json.dumps(raw))
    expected = {("<image>" if name == "<reserved08707>" else name): id_ for name, id_ in released_tokenizer.get_vocab().items()}
    assert back.get_vocab() == expected
    for text in (*CORPUS, "IMGIMGAZ and <sentinel:3> are tokens here"):
        assert back.encode(text).ids == released_tokenizer.encode(text).ids
    own = BPETextTokenizer.train(CORPUS, 300)
    with pytest.raises(UsageError, match="a vocabulary of its own"):
        foreign_tokenizer(DocumentTokenizer(vocab_for(own, CODES, GRID), own), "<image>")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["model"].pop("vocab"), "is not a BPE tokenizer file"),
        (lambda raw: _rename(raw, "<racm3:break>", "<other>"), "has no token <racm3:break>"),
        (lambda raw: _rename(raw, "<sentinel:0>", "<sentinel:9>"), "has no token <sentinel:0>"),
        (lambda raw: _rename(raw, image_token_name(3), image_token_name(99)), "do not belong together"),
        (lambda raw: _rename(raw, "Ġ", "absent"), "not a byte-level BPE tokenizer"),
    ],
)
def test_other_tokenizers_are_refused(released_tokenizer, tmp_path, change, message):
    raw = json.loads(released_tokenizer.to_str())
    change(raw)
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ArtefactError, match=message):
        read_tokenizer(tmp_path / "tokenizer.json", CODES, GRID, 400)


def _rename(raw: dict, old: str, new: str) -> None:
    raw["model"]["vocab"] = {new if name == old else name: id_ for name, id_ in raw["model"]["vocab"].items()}
    raw["model"]["merges"] = [pair for pair in raw["model"]["merges"] if old not in "".join(pair)]
    raw["added_tokens"] = [{**entry, "content": new} if entry["content"] == old else entry for entry in raw["added_tokens"]]
