"""Pieces as they are finished, whatever portions the tokens come in."""

import numpy as np
import pytest

from cm3.decode.pieces import PieceAssembler, pieces_of
from cm3.decode.records import Done, Generation, ImagePiece, TextPiece
from cm3.tokens import BPETextTokenizer, vocab_for

TEXT = BPETextTokenizer.train(["one two three"] * 3, 262)
VOCAB = vocab_for(TEXT, 16, (2, 2))
PICTURE = [VOCAB.image_start + code for code in (3, 1, 4, 1)]
ANSWER = [*TEXT.encode("one two"), VOCAB.break_id, *PICTURE, VOCAB.break_id, *TEXT.encode("three é"), VOCAB.eos_id]


def shown(pieces):
    return [piece.codes.tolist() if isinstance(piece, ImagePiece) else piece for piece in pieces]


@pytest.mark.parametrize("portion", [1, 2, 5, 100])
def test_the_same_pieces_in_any_portions(portion):
    assembler, pieces = PieceAssembler(VOCAB, TEXT), []
    for start in range(0, len(ANSWER), portion):
        last = start + portion >= len(ANSWER)
        pieces += assembler.take(ANSWER[start : start + portion], "stop" if last else None)
    assert shown(pieces) == shown(pieces_of(Generation(np.array(ANSWER), "stop"), VOCAB, TEXT))
    assert [piece.text for piece in pieces if isinstance(piece, TextPiece)] == ["one two", "three é"]
    assert pieces[-1] == Done("stop", len(ANSWER), 1)


def test_a_picture_comes_with_its_last_code():
    assembler = PieceAssembler(VOCAB, TEXT)
    assert not list(assembler.take(PICTURE[:3]))
    [piece] = assembler.take(PICTURE[3:])
    assert piece.codes.tolist() == [[3, 1], [4, 1]]


def test_an_unfinished_picture_is_dropped():
    assert list(PieceAssembler(VOCAB, TEXT).take([*PICTURE[:3], VOCAB.eos_id], "length")) == [Done("length", 4, 0)]
