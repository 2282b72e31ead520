"""`TokenizedDocument`: a document as token ids, with where each segment lies and how much each token counts.

Layout: `<bos> segment (<break> segment)* <eos>`; `<break>` stands between any two neighboring segments, so every
interleaving can be read back. A picture is its h · w image ids in raster order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from cm3.tokens.vocab import Vocab

SpanKind = Literal["text", "image"]


class Span(NamedTuple):
    """Positions [start, stop) of one segment's content, without the `<break>`, `<bos>` or `<eos>` beside it."""

    kind: SpanKind
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class TokenizedDocument:
    """One document as arrays over its T tokens.

    id: the document's name; token_ids: (T,) int64 in [0, vocab.size); grid_positions: (T,) int64, 0 for a token that is
    no image code and 1 + row · w + column for one that is; spans: the segments in reading order; loss_weights: (T,)
    float32 ≥ 0, entry t is the weight of predicting token t (entry 0 is never predicted).
    """

    id: str
    token_ids: np.ndarray
    grid_positions: np.ndarray
    spans: tuple[Span, ...]
    loss_weights: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)


def assemble(
    segments: Sequence[tuple[SpanKind, np.ndarray]], vocab: Vocab, id: str = "", weights: Sequence[float] | None = None
) -> TokenizedDocument:
    """Join segments of (kind, ids (n,)) into the document layout.

    weights: per segment, the loss weight of its tokens and of the `<break>` or `<eos>` that closes it (default 1).
    """
    count = len(segments)
    sizes = [len(ids) for _, ids in segments]
    token_ids = np.empty(sum(sizes) + max(count, 1) + 1, np.int64)  # (T,)
    grid_positions = np.zeros(len(token_ids), np.int64)
    loss_weights = np.ones(len(token_ids), np.float32)
    token_ids[0] = vocab.bos_id
    spans, start = [], 1
    for index, (kind, ids) in enumerate(segments):
        stop = start + len(ids)
        token_ids[start:stop] = ids
        token_ids[stop] = vocab.break_id
        if kind == "image":
            grid_positions[start:stop] = np.arange(1, len(ids) + 1)
        if weights is not None:
            loss_weights[start : stop + 1] = weights[index]
        spans.append(Span(kind, start, stop))
        start = stop + 1
    token_ids[-1] = vocab.eos_id
    return TokenizedDocument(id, token_ids, grid_positions, tuple(spans), loss_weights)


def grid_positions_of(token_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """Grid positions (T,) int64 of ids (T,) in the document layout: counted from the start of each run of image ids.

    Pictures are separated by `<break>`, so a run is one picture (a prompt may end inside one). Not for sequences whose
    spans were moved: there the positions travel with the tokens.
    """
    is_image = vocab.is_image(token_ids)
    index = np.arange(1, len(token_ids) + 1)
    last_other = np.maximum.accumulate(np.where(is_image, 0, index))  # (T,) 1 + position of the last non-image token
    return np.where(is_image, index - last_other, 0)
