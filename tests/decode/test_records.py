"""Answers as texts and pictures."""

import numpy as np
import pytest

from cm3.core.errors import UsageError
from cm3.decode.records import Done, Generation, ImagePiece, TextPiece, codes_of, pieces_of
from cm3.tokens import Vocab


class Letters:
    """Text id 0 is "a", 1 is "b", …"""

    vocab_size = 30

    def __init__(self, start: int) -> None:
        self.start = start

    def encode(self, text: str) -> list[int]:
        return [self.start + ord(letter) - 97 for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + id_ - self.start) for id_ in ids)


def test_pieces_of_an_interleaved_answer(vocab: Vocab) -> None:
    letters = Letters(vocab.text_start)
    picture = vocab.image_start + np.arange(12)
    ids = np.array([*letters.encode("abc"), vocab.break_id, *picture, vocab.break_id, *letters.encode("d"), vocab.eos_id])
    first, second, third, done = pieces_of(Generation(ids, "stop"), vocab, letters)
    assert isinstance(first, TextPiece)
    assert (first.text, first.token_ids) == ("abc", tuple(letters.encode("abc")))
    assert isinstance(second, ImagePiece)
    assert np.array_equal(second.codes, np.arange(12).reshape(3, 4))
    assert isinstance(third, TextPiece)
    assert third.text == "d"
    assert done == Done("stop", 19, 1)


def test_an_incomplete_picture_is_left_out(vocab: Vocab) -> None:
    pieces = pieces_of(Generation(vocab.image_start + np.arange(5), "length"), vocab, Letters(vocab.text_start))
    assert pieces == [Done("length", 5, 0)]


def test_codes_of_anything_but_a_picture_are_refused(vocab: Vocab) -> None:
    with pytest.raises(UsageError, match="not one picture"):
        codes_of(Generation(np.array([vocab.text_start]), "stop"), vocab)
