"""What may come next: every row walks through its answer, and the walk says which ids are legal and where they stand.

An answer is a plan (`ImageAnswer`, `TextAnswer`, `InfillAnswer`, `FreeAnswer`). Its walk yields stretches: runs of tokens
whose legal ids do not depend on what is drawn inside the run. A picture is one stretch of h · w tokens, so the engine
can draw all of it without looking; text is a stretch per token, because any token may be the last.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from cm3.core.counts import require_positive
from cm3.tokens import Vocab
from cm3.tokens.layout import delimiters
from cm3.tokens.tokenized import SpanKind

Reason = Literal["stop", "length"]
IdRanges = tuple[tuple[int, int], ...]
Walk = Generator["Stretch", Sequence[int], Reason]


@dataclass(frozen=True)
class Stretch:
    """The next tokens of a row: `allowed` id ranges [start, stop) and, for each token, the grid position it has if it is an
    image token (0 where none can be)."""

    allowed: IdRanges
    grid_positions: tuple[int, ...]


class Answer(Protocol):
    """A plan of what to generate."""

    def max_tokens(self, vocab: Vocab) -> int:
        """The most tokens the walk can take."""

    def walk(self, vocab: Vocab) -> Walk:
        """Yields stretches and receives their tokens; returns why it ended."""


@dataclass(frozen=True)
class ImageAnswer:
    """Exactly one picture: h · w image tokens in raster order."""

    def max_tokens(self, vocab: Vocab) -> int:
        return vocab.num_image_tokens

    def walk(self, vocab: Vocab) -> Walk:
        yield Stretch(_image(vocab), tuple(range(1, vocab.num_image_tokens + 1)))
        return "stop"


@dataclass(frozen=True)
class TextAnswer:
    """One text segment of at least one token, ended by `<eos>`, `<break>` or the mark of a picture (which is not part of it).

    limit: the most tokens. Raises `UsageError` when it is less than 1, as the other answers with a limit do.
    """

    limit: int = 64

    def __post_init__(self) -> None:
        require_positive(limit=self.limit)

    def max_tokens(self, vocab: Vocab) -> int:
        return self.limit

    def walk(self, vocab: Vocab) -> Walk:
        mark = () if vocab.image_marks is None else vocab.image_marks[:1]
        _, closed = yield from _text(vocab, self.limit, (vocab.eos_id, vocab.break_id, *mark))
        return "stop" if closed is not None else "length"


@dataclass(frozen=True)
class PairAnswer:
    """A text of at most `limit` tokens and, behind the delimiter that parts them, a picture."""

    limit: int = 64

    def __post_init__(self) -> None:
        require_positive(limit=self.limit)

    def max_tokens(self, vocab: Vocab) -> int:
        return self.limit + 1 + vocab.num_image_tokens

    def walk(self, vocab: Vocab) -> Walk:
        closing, opening = delimiters(vocab, "text", "image")
        [between] = closing + opening
        _, closed = yield from _text(vocab, self.limit, (between,))
        if closed is None:
            yield _forced(between)
        return (yield from ImageAnswer().walk(vocab))


@dataclass(frozen=True)
class Gap:
    """A moved span to fill in: an image gap has one grid position per missing token, a text gap a token limit."""

    kind: SpanKind
    grid_positions: tuple[int, ...] = ()
    limit: int = 64


@dataclass(frozen=True)
class InfillAnswer:
    """The contents of gaps 0, 1, … in the layout of causal masking: `span <eoss> <mask:1> span <eoss> …`.

    The prompt ends with the `<mask:0>` that opens the first; nothing is generated after the last span's content.
    """

    gaps: tuple[Gap, ...]

    def max_tokens(self, vocab: Vocab) -> int:
        sizes = (len(gap.grid_positions) if gap.kind == "image" else gap.limit + 1 for gap in self.gaps)
        return sum(sizes) + 2 * (len(self.gaps) - 1)

    def walk(self, vocab: Vocab) -> Walk:
        reason: Reason = "stop"
        for index, gap in enumerate(self.gaps):
            if index:
                yield _forced(vocab.mask_id(index))
            if gap.kind == "image":
                yield Stretch(_image(vocab), gap.grid_positions)
                closed = None
            else:
                _, closed = yield from _text(vocab, gap.limit, (vocab.eoss_id,))
                reason = "length" if closed is None else reason
            if closed is None and index + 1 < len(self.gaps):
                yield _forced(vocab.eoss_id)
        return reason


@dataclass(frozen=True)
class FreeAnswer:
    """Any interleaving of texts and pictures in the layout of the vocabulary, ended by `<eos>`.

    A picture is begun only when all of it still fits into `limit` tokens and fewer than `max_images` were drawn.
    """

    limit: int = 256
    max_images: int = 1

    def __post_init__(self) -> None:
        require_positive(limit=self.limit)

    def max_tokens(self, vocab: Vocab) -> int:
        return self.limit

    def walk(self, vocab: Vocab) -> Walk:
        return self._separated(vocab) if vocab.image_marks is None else self._enclosed(vocab, *vocab.image_marks)

    def _enclosed(self, vocab: Vocab, image_open: int, image_close: int) -> Walk:
        """Text token by token; the mark that opens a picture forces all of it and the mark that closes it."""
        used = images = 0
        in_text = False
        while used < self.limit:
            fits = images < self.max_images and used + vocab.num_image_tokens + 2 <= self.limit
            marks = [image_open] * fits + [vocab.eos_id] * (used > 0) + [vocab.break_id] * in_text
            (token,) = yield Stretch((_text_range(vocab), *_ids(*marks)), (0,))
            used += 1
            if token == vocab.eos_id:
                return "stop"
            in_text = bool(vocab.is_text(int(token)))
            if token == image_open:
                yield Stretch(_image(vocab), tuple(range(1, vocab.num_image_tokens + 1)))
                yield _forced(image_close)
                used, images = used + vocab.num_image_tokens + 1, images + 1
        return "length"

    def _separated(self, vocab: Vocab) -> Walk:
        used = images = 0
        while used < self.limit:
            may_draw = images < self.max_images and used + vocab.num_image_tokens <= self.limit
            start = (_text_range(vocab), *(_image(vocab) if may_draw else ()))
            (first,) = yield Stretch(start, (1,))
            used += 1
            if vocab.is_image(int(first)):
                rest = tuple(range(2, vocab.num_image_tokens + 1))
                if rest:
                    yield Stretch(_image(vocab), rest)
                used, images, closed = used + len(rest), images + 1, None
            else:
                more, closed = yield from _text(vocab, self.limit - used, (vocab.eos_id, vocab.break_id), started=True)
                used += more
            if closed is None:
                if used >= self.limit:
                    break
                (closed,) = yield Stretch(_ids(vocab.eos_id, vocab.break_id), (0,))
                used += 1
            if closed == vocab.eos_id:
                return "stop"
        return "length"


class RowWalk:
    """A walk whose stretches may be taken in pieces; `done` when the answer is complete."""

    def __init__(self, answer: Answer, vocab: Vocab) -> None:
        self._walk = answer.walk(vocab)
        self._drawn: list[int] = []
        self.reason: Reason | None = None
        self._stretch: Stretch = next(self._walk)

    @property
    def done(self) -> bool:
        return self.reason is not None

    @property
    def allowed(self) -> IdRanges:
        """The legal ids of the next token."""
        return self._stretch.allowed

    @property
    def remaining(self) -> int:
        """How many tokens are legal under `allowed` before the walk has to see them."""
        return len(self._stretch.grid_positions) - len(self._drawn)

    def grid_positions(self, count: int) -> tuple[int, ...]:
        """Grid positions of the next `count` ≤ `remaining` tokens, for those that turn out to be image tokens."""
        return self._stretch.grid_positions[len(self._drawn) : len(self._drawn) + count]

    def advance(self, tokens: Sequence[int]) -> None:
        """Take `tokens`, at most `remaining` of them."""
        self._drawn.extend(tokens)
        if self.remaining == 0:
            try:
                self._stretch, self._drawn = self._walk.send(self._drawn), []
            except StopIteration as end:
                self.reason = end.value


def _text(
    vocab: Vocab, limit: int, closing: tuple[int, ...], started: bool = False
) -> Generator[Stretch, Sequence[int], tuple[int, int | None]]:
    """Text tokens up to one of `closing`, which cannot come first; returns (tokens taken, the closing id or None)."""
    for taken in range(limit):
        may_close = started or taken > 0
        (token,) = yield Stretch((_text_range(vocab), *(_ids(*closing) if may_close else ())), (0,))
        if token in closing:
            return taken + 1, int(token)
    return limit, None


def _text_range(vocab: Vocab) -> tuple[int, int]:
    return (vocab.text_start, vocab.text_stop)


def _image(vocab: Vocab) -> IdRanges:
    return ((vocab.image_start, vocab.image_stop),)


def _ids(*ids: int) -> IdRanges:
    return tuple((id_, id_ + 1) for id_ in ids)


def _forced(id_: int) -> Stretch:
    return Stretch(_ids(id_), (0,))
