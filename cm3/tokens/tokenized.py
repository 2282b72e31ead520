"""`TokenizedDocument`: a document as token ids, with where each segment lies and how much each token counts.

The delimiters between segments are those of `layout.py`, from which every interleaving can be read back. A picture is its
h · w image ids in raster order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cm3.tokens.layout import Span, delimiters
from cm3.tokens.vocab import SpanKind, Vocab


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

    weights: per segment, the loss weight of its tokens and of the delimiters that belong to it (default 1): what closes it,
    and a mark that opens it.
    """
    per_segment = [1.0] * len(segments) if weights is None else weights
    ids: list[np.ndarray] = []
    grid: list[np.ndarray] = []
    loss: list[np.ndarray] = []
    spans: list[Span] = []
    length, weight = 0, 1.0
    before: SpanKind | None = None

    def append(piece: np.ndarray, weight: float, positions: np.ndarray | None = None) -> None:
        nonlocal length
        ids.append(piece)
        grid.append(np.zeros(len(piece), np.int64) if positions is None else positions)
        loss.append(np.full(len(piece), weight, np.float32))
        length += len(piece)

    for (kind, content), own_weight in zip(segments, per_segment, strict=True):
        closing, opening = delimiters(vocab, before, kind)
        append(np.asarray(closing, np.int64), weight)
        append(np.asarray(opening, np.int64), own_weight)
        spans.append(Span(kind, length, length + len(content)))
        append(content, own_weight, np.arange(1, len(content) + 1) if kind == "image" else None)
        before, weight = kind, own_weight
    append(np.asarray([id_ for group in delimiters(vocab, before, None) for id_ in group], np.int64), weight)
    return TokenizedDocument(id, np.concatenate(ids), np.concatenate(grid), tuple(spans), np.concatenate(loss))


def grid_positions_of(token_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """Grid positions (T,) int64 of ids (T,) in the document layout: counted from the start of each run of image ids.

    Pictures are separated by `<break>`, so a run is one picture (a prompt may end inside one). Not for sequences whose
    spans were moved: there the positions travel with the tokens.
    """
    is_image = vocab.is_image(token_ids)
    index = np.arange(1, len(token_ids) + 1)
    last_other = np.maximum.accumulate(np.where(is_image, 0, index))  # (T,) 1 + position of the last non-image token
    return np.where(is_image, index - last_other, 0)
