"""The contract of the protocol `TextTokenizer`, which every implementation passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3.core.protocols import TextTokenizer
from cm3.tokens import BPETextTokenizer

TEXTS = ["a red circle", " leading space", "trailing ", "<mask:0> <eos> <pad>", "naïve – 漢字 🎈", "", "\n\ttabs", "a" * 300]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return BPETextTokenizer.train(["a red circle on white", "two blue squares"], 320)


def test_is_a_text_tokenizer(tokenizer: TextTokenizer) -> None:
    assert isinstance(tokenizer, TextTokenizer)
    assert tokenizer.vocab_size >= 256


@pytest.mark.parametrize("text", [text for text in TEXTS if text])
def test_decoding_inverts_encoding(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_user_text_never_becomes_a_special_token(tokenizer: BPETextTokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids
        assert min(ids) >= tokenizer.first_id
        assert max(ids) < tokenizer.first_id + tokenizer.vocab_size


def test_saving_keeps_every_id(tokenizer: BPETextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = BPETextTokenizer.load(tmp_path)
    assert [again.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
