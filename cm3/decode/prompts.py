"""What a row is conditioned on, and what is left of it when the condition is taken away.

A prompt is the beginning of a `TokenizedDocument`, made by the functions that make training sequences: `encode_prompt` of
`cm3.tokens` for every task, `mask_spans` of `cm3.sequences` for infilling. Guidance contrasts it with a stream in which
`<mask:0>` stands in place of the text, the form in which training shows a missing text (arXiv:2309.02591 section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cm3.core.errors import InputError, UsageError
from cm3.decode.grammar import Gap, InfillAnswer
from cm3.tokens import Span, TokenizedDocument, Vocab
from cm3.tokens.layout import extent
from cm3.tokens.tokenized import SpanKind


@dataclass(frozen=True, eq=False)
class Stream:
    """One conditioning of one request: token_ids (T,) int64 and grid_positions (T,) int64, T ≥ 1."""

    token_ids: np.ndarray
    grid_positions: np.ndarray


@dataclass(frozen=True, eq=False)
class Prompt:
    """Tokens up to the first one to generate.

    token_ids, grid_positions: (T,) int64; spans: the segments among them; context_stop: tokens [1, context_stop) are
    retrieved documents (1: there are none), which belong to the condition and go with it; infills: whether the answer
    fills gaps of the prompt. Requests that share one `Prompt` object share its prefill.
    """

    vocab: Vocab
    token_ids: np.ndarray
    grid_positions: np.ndarray
    spans: tuple[Span, ...] = ()
    context_stop: int = 1
    infills: bool = False

    def stream(self) -> Stream:
        """All of the prompt."""
        return Stream(self.token_ids, self.grid_positions)

    def holds(self, kind: SpanKind) -> bool:
        """Whether a segment of `kind` stands behind the retrieved documents."""
        return any(segment.kind == kind and segment.start >= self.context_stop for segment in self.spans)

    def without(self, kind: SpanKind) -> Stream:
        """The prompt without its retrieved documents, every segment of `kind` replaced by `<mask:0>`.

        A prompt with gaps already uses `<mask:0>`, so there the segment goes altogether, with its `<break>`; and so it does
        where marks enclose pictures, as in Chameleon's own streams.
        """
        keep = np.ones(len(self.token_ids), bool)
        keep[1 : self.context_stop] = False
        token_ids = self.token_ids.copy()
        leaves = self.infills or self.vocab.image_marks is not None
        for segment in self.spans:
            if segment.kind != kind or segment.start < self.context_stop:
                continue
            if leaves and not self.vocab.is_mask(token_ids[segment.start : segment.stop]).any():
                first, stop = extent(token_ids, segment, self.vocab)
                keep[first:stop] = False
            elif not leaves:
                token_ids[segment.start] = self.vocab.mask_id(0)
                keep[segment.start + 1 : segment.stop] = False
        grid = np.where(self.vocab.is_image(token_ids), self.grid_positions, 0)
        return Stream(token_ids[keep], grid[keep])

    def unconditional(self) -> Stream:
        """The beginning of a document of which only this picture is left; see `unconditional_image`."""
        return unconditional_image(self.vocab).stream()


def distinct(streams: Sequence[Stream]) -> tuple[list[Stream], list[int]]:
    """The different streams among `streams`, and for each of them which one it is."""
    seen: dict[tuple[bytes, bytes], int] = {}
    kept: list[Stream] = []
    index = []
    for stream in streams:
        key = (stream.token_ids.tobytes(), stream.grid_positions.tobytes())
        if key not in seen:
            seen[key] = len(kept)
            kept.append(stream)
        index.append(seen[key])
    return kept, index


def continuation(document: TokenizedDocument, vocab: Vocab, context_segments: int = 0) -> Prompt:
    """The prompt of `encode_prompt`: the answer begins after its last token.

    context_segments: how many of its first segments are retrieved documents.
    """
    stop = 1
    if context_segments and context_segments < len(document.spans):
        stop = extent(document.token_ids, document.spans[context_segments], vocab)[0]
    elif context_segments:
        stop = document.spans[-1].stop + 1
    return Prompt(vocab, document.token_ids, document.grid_positions, document.spans, context_stop=stop)


def unconditional_image(vocab: Vocab) -> Prompt:
    """A picture of anything: `<bos> <mask:0> <break>`, or where marks enclose pictures `<bos> <image>`."""
    if vocab.image_marks is not None:
        return Prompt(vocab, np.array([vocab.bos_id, vocab.image_marks[0]]), np.zeros(2, np.int64))
    token_ids = np.array([vocab.bos_id, vocab.mask_id(0), vocab.break_id])
    return Prompt(vocab, token_ids, np.zeros(3, np.int64), (Span("text", 1, 2),))


def document_start(vocab: Vocab) -> Prompt:
    """`<bos>` alone: for a text, or a text and its picture, of anything."""
    return Prompt(vocab, np.array([vocab.bos_id]), np.zeros(1, np.int64))


def infilling(masked: TokenizedDocument, vocab: Vocab, text_limit: int = 64) -> tuple[Prompt, InfillAnswer]:
    """The prompt and the answer that fill the gaps of a document masked by `mask_spans`.

    The moved spans of `masked` say what is missing; their tokens are not looked at. Raises `InputError` when nothing is masked.
    """
    openings = _openings(masked, vocab)
    moved = masked.spans[len(masked.spans) - len(openings) :]
    gaps = tuple(
        Gap("image", tuple(int(place) for place in masked.grid_positions[span.start : span.stop]))
        if span.kind == "image"
        else Gap("text", limit=text_limit)
        for span in moved
    )
    cut = openings[0] + 1
    kept = masked.spans[: len(masked.spans) - len(openings)]
    prompt = Prompt(vocab, masked.token_ids[:cut], masked.grid_positions[:cut], kept, infills=True)
    return prompt, InfillAnswer(gaps)


def fill(masked: TokenizedDocument, answer_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """The masked sequence (T',) int64 with generated `answer_ids` in place of its moved spans.

    Every token of the source is the same, bit for bit; `restore` of `cm3.sequences` puts the spans back in their places.
    """
    source = masked.token_ids[: _openings(masked, vocab)[0] + 1]
    ending = [vocab.eos_id] if answer_ids[-1] == vocab.eoss_id else [vocab.eoss_id, vocab.eos_id]
    return np.concatenate([source, answer_ids, ending])


def _openings(masked: TokenizedDocument, vocab: Vocab) -> np.ndarray:
    """Positions of the sentinels that open the moved spans."""
    sentinels = np.flatnonzero(vocab.is_mask(masked.token_ids))
    if len(sentinels) == 0:
        raise InputError("nothing is masked: choose a box or a mask that covers at least one code of the picture")
    if len(sentinels) % 2:
        raise UsageError("the document is not masked by mask_spans: its sentinels do not come in pairs")
    return sentinels[len(sentinels) // 2 :]
