"""Tokens as they come → texts and pictures as they are finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cm3.core.protocols import TextTokenizer
from cm3.decode.grammar import Reason
from cm3.decode.records import Done, Generation, ImagePiece, Piece, TextPiece
from cm3.tokens import Vocab


def pieces_of(generation: Generation, vocab: Vocab, text: TextTokenizer) -> list[Piece]:
    """The texts and pictures of a whole answer in order, then `Done`; an incomplete picture is left out."""
    return list(PieceAssembler(vocab, text).take(generation.token_ids.tolist(), generation.reason))


class PieceAssembler:
    """Collects the tokens of one answer. A text is finished by whatever follows it, a picture by its last code."""

    def __init__(self, vocab: Vocab, text: TextTokenizer) -> None:
        self._vocab, self._text = vocab, text
        self._open: list[int] = []  # ids of the unfinished piece, all text or all image
        self._tokens = self._images = 0

    def take(self, token_ids: Sequence[int], reason: Reason | None = None) -> Iterator[Piece]:
        """The pieces that `token_ids` finish; with `reason` these were the last, and `Done` follows."""
        for id_ in token_ids:
            self._tokens += 1
            if not self._continues(id_):
                yield from self._close()
            if self._vocab.is_image(id_) or self._vocab.is_text(id_):
                self._open.append(id_)
            if self._vocab.is_image(id_) and len(self._open) == self._vocab.num_image_tokens:
                yield self._picture()
        if reason is not None:
            yield from self._close()
            yield Done(reason, self._tokens, self._images)

    def _continues(self, id_: int) -> bool:
        """Whether the token belongs to the open piece."""
        if not self._open:
            return True
        kind = self._vocab.is_text if self._vocab.is_text(self._open[0]) else self._vocab.is_image
        return bool(kind(id_))

    def _close(self) -> Iterator[TextPiece]:
        """End the open piece: a text is given, an unfinished picture is dropped."""
        ids, self._open = self._open, []
        if ids and self._vocab.is_text(ids[0]):
            yield TextPiece(self._text.decode(ids), tuple(ids))

    def _picture(self) -> ImagePiece:
        codes = self._vocab.codes(np.array(self._open, np.int64)).reshape(self._vocab.grid_shape)  # (h, w)
        self._open = []
        self._images += 1
        return ImagePiece(codes)
