"""Byte-level BPE: exact inversion, no special ids from text, files that other libraries read."""

import os
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.core.protocols import TextTokenizer
from cm3.tokens import BPETextTokenizer

anything = st.text(max_size=40)  # hypothesis leaves lone surrogates out by default
spiced = st.lists(
    st.sampled_from(["<mask:0>", "<eos>", "<bos>", "<pad>", "<break>", " ", "  ", "\n", "a", "Ġ", "é", "😀", "\0"])
).map("".join)


@settings(deadline=None, max_examples=150, derandomize=True)
@given(anything | spiced)
@example("")
@example(" ")
@example("<mask:0>")
@example(" <eos> ")
@example("\u200b\ufeff\u0301")
def test_decode_inverts_encode_and_no_special_id_comes_out(text, vocab, words):
    ids = text.encode(words)
    assert text.decode(ids) == words
    assert ids
    assert all(vocab.text_start <= id_ < vocab.text_stop for id_ in ids)


def test_a_word_is_the_same_token_at_the_start_and_inside(text):
    assert len(text.encode("circle")) == 1
    assert text.encode("red circle") == text.encode("red") + text.encode("circle")


def test_what_goes_on_behind_a_text_gets_no_space(text):
    assert text.encode("red") + text.encode_continued(" circle!\n") == text.encode("red circle!\n")
    assert text.decode(text.encode("red") + text.encode_continued("<eos>")) == "red<eos>"
    with pytest.raises(InputError, match="surrogate"):
        text.encode_continued("\ud800")


def test_it_is_a_text_tokenizer(text):
    assert isinstance(text, TextTokenizer)


def test_batch_equals_one_by_one(text):
    texts = ["a red circle", "", "<eos>", "two"]
    assert text.encode_batch(texts) == [text.encode(one) for one in texts]
    assert text.encode_batch([]) == []


def test_lone_surrogates_are_refused_by_name(text):
    with pytest.raises(InputError, match=r"U\+D800 at position 1"):
        text.encode("a\ud800b")
    with pytest.raises(InputError, match="surrogate"):
        BPETextTokenizer.train(["a\udfff"], 300)


def test_bytes_that_are_no_utf8_become_replacement_characters(text):
    half = text.encode("€")[1:3]
    assert "\ufffd" in text.decode(half)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(UsageError, match="at least 256"):
        BPETextTokenizer.train(["a"], 255)


def test_an_empty_corpus_still_encodes_every_byte():
    tokenizer = BPETextTokenizer.train([], 300, num_masks=3)
    assert (tokenizer.vocab_size, tokenizer.first_id) == (256, 8)
    assert tokenizer.decode(tokenizer.encode("größer")) == "größer"


def test_save_and_load(text, tmp_path):
    text.save(tmp_path / "new")
    again = BPETextTokenizer.load(tmp_path / "new")
    assert (again.first_id, again.vocab_size, again.to_json()) == (text.first_id, text.vocab_size, text.to_json())
    assert again.encode("<mask:0> circle") == text.encode("<mask:0> circle")


def test_missing_and_broken_files_are_artefact_errors(tmp_path):
    with pytest.raises(ArtefactError, match=r"no tokenizer\.json"):
        BPETextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(ArtefactError, match="not a tokenizer file"):
        BPETextTokenizer.load(tmp_path)


def test_transformers_reads_the_same_tokenizer(text, tmp_path):
    from transformers import PreTrainedTokenizerFast

    text.save(tmp_path)
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for words in (" two green circles,\n x", "no <eos>, <mask:0> or <bos>"):
        assert theirs(words).input_ids == text.encode(words)
        assert theirs.decode(text.encode(words)) == words
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)


def test_training_is_the_same_in_another_process():
    code = (
        "from cm3.tokens import BPETextTokenizer as T; import hashlib;"
        "text = [f'{a} {b}' for a in ('red', 'blue', 'green') for b in ('circle', 'square', 'ring')];"
        "print(hashlib.sha256(T.train(text, 320).to_json().encode()).hexdigest())"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **env}).stdout
        for env in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "1"})
    ]
    assert runs[0] == runs[1]


def test_importing_needs_neither_torch_nor_transformers():
    code = "import sys, cm3.tokens; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
