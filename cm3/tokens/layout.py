"""What stands between segments: the one place that knows how a document is written as tokens.

    separated   <bos> segment (<break> segment)* <eos>                            ours: one `<break>` between any two
    enclosed    <bos> text <image> codes </image> text <break> text <eos>         Chameleon: pictures between two marks

A vocabulary with `image_open_id` and `image_close_id` is written enclosed, any other separated. Both are exactly
invertible: enclosed, only two texts in a row need a `<break>` (Chameleon's end of turn), for a picture shows its own ends.
`delimiters` writes, `split` reads, `extent` says what belongs to a segment.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cm3.core.errors import InputError
from cm3.tokens.vocab import SpanKind, Vocab

Ids = tuple[int, ...]


class Span(NamedTuple):
    """Positions [start, stop) of one segment's content, without the delimiters beside it."""

    kind: SpanKind
    start: int
    stop: int


def delimiters(vocab: Vocab, before: SpanKind | None, after: SpanKind | None) -> tuple[Ids, Ids]:
    """The ids between a segment of kind `before` and one of kind `after`; None: the edge of the document.

    Returns (ids that close what stands before, ids that open what comes after): the first are learned with the segment
    before them, the second with the one behind.
    """
    start = (vocab.bos_id,) if before is None else ()
    if after is None and before is None:
        return start, (vocab.eos_id,)
    if vocab.image_marks is None:
        return start or ((vocab.eos_id,) if after is None else (vocab.break_id,)), ()
    image_open, image_close = vocab.image_marks
    closing = (image_close,) if before == "image" else start
    if after is None:
        return (*closing, vocab.eos_id), ()
    if before == after == "text":
        return (vocab.break_id,), ()
    return closing, ((image_open,) if after == "image" else ())


def extent(ids: np.ndarray, segment: Span, vocab: Vocab) -> tuple[int, int]:
    """Positions [start, stop) of a segment of the document `ids` with the delimiters that go when it goes.

    Enclosed, the texts on both sides of a picture that goes become one.
    """
    if vocab.image_marks is None:
        return segment.start, segment.stop + 1
    if segment.kind == "image":
        return segment.start - 1, segment.stop + 1
    ends_in_break = segment.stop < len(ids) and ids[segment.stop] == vocab.break_id
    return segment.start, segment.stop + int(ends_in_break)


def split(ids: np.ndarray, vocab: Vocab) -> list[np.ndarray]:
    """The contents of the segments of a whole document (T,), in order; each is text ids or the h · w ids of a picture.

    Raises `InputError` saying what is wrong with ids that are no whole document.
    """
    if len(ids) < 2 or ids[0] != vocab.bos_id or ids[-1] != vocab.eos_id:
        raise InputError("the token ids are not a whole document: it starts with <bos> and ends with <eos>")
    if vocab.is_mask(ids).any() or (ids == vocab.eoss_id).any():
        raise InputError("the token ids hold moved spans (<mask:i>, <eoss>); restore their order before decoding")
    if len(ids) == 2:
        return []
    marks, body = vocab.image_marks, ids[1:-1]
    pieces = _split_separated(body, vocab) if marks is None else _split_enclosed(body, vocab, marks)
    for index, piece in enumerate(pieces):
        whole_image = len(piece) == vocab.num_image_tokens and vocab.is_image(piece).all()
        if not whole_image and not (len(piece) > 0 and vocab.is_text(piece).all()):
            raise InputError(_what_is_wrong(piece, vocab, index))
    return pieces


def split_leniently(ids: np.ndarray, vocab: Vocab) -> list[np.ndarray]:
    """The segments that are whole in any ids (T,): reading stops at the first `<eos>`, stray ids vanish."""
    ends = np.flatnonzero(ids == vocab.eos_id)
    ids = ids[: ends[0]] if len(ends) else ids
    kinds = np.where(vocab.is_image(ids), 2, np.where(vocab.is_text(ids), 1, 0))  # (T,) 2 image, 1 text, 0 neither
    starts = np.flatnonzero(np.diff(kinds, prepend=-1))
    runs = [run for run in np.split(ids, starts[1:]) if len(run)]
    whole = [vocab.is_text(int(run[0])) or (vocab.is_image(int(run[0])) and len(run) == vocab.num_image_tokens) for run in runs]
    return [run for run, keep in zip(runs, whole) if keep]


def _split_separated(body: np.ndarray, vocab: Vocab) -> list[np.ndarray]:
    pieces = np.split(body, np.flatnonzero(body == vocab.break_id))
    return [piece[index > 0 :] for index, piece in enumerate(pieces)]


def _split_enclosed(body: np.ndarray, vocab: Vocab, image_marks: tuple[int, int]) -> list[np.ndarray]:
    """Pieces between marks; outside of pictures an empty one is no segment, so a `<break>` beside a picture says nothing."""
    image_open, image_close = image_marks
    marks = np.flatnonzero(np.isin(body, (vocab.break_id, image_open, image_close)))
    pieces, start, inside = [], 0, False
    for place in [*marks.tolist(), len(body)]:
        mark = int(body[place]) if place < len(body) else None
        if inside != (mark == image_close):
            raise InputError(f"a picture of the token ids begins or ends without its mark, at token {place + 1}")
        if inside or place > start:
            pieces.append(body[start:place])
        inside, start = mark == image_open, place + 1
    return pieces


def _what_is_wrong(piece: np.ndarray, vocab: Vocab, index: int) -> str:
    where = f"segment {index} of the token ids"
    if len(piece) == 0:
        return f"{where} is empty: two <break> stand side by side"
    is_image = vocab.is_image(piece)
    if is_image.all():
        return f"{where} is a picture of {len(piece)} tokens, expected {vocab.num_image_tokens} (grid_shape={vocab.grid_shape})"
    stray = piece[~is_image & ~vocab.is_text(piece)]
    if len(stray):
        return f"{where} holds id {int(stray[0])}, which is neither text nor a picture"
    return f"{where} mixes text and picture tokens without a <break> between them"
