"""Causal masking: move spans of a document to its end, behind sentinels, so that a left-to-right model fills them in.

    document    <bos> a b c d <break> e f g h <eos>           spans (b c), (g h)
    masked      <bos> a <mask:0> d <break> e f <mask:1> <mask:0> b c <eoss> <mask:1> g h <eoss> <eos>

This is the one place where masking happens: the CM3 objective draws its spans, instruction tuning and infilling prompts
give them. No token is lost, each span costs three more, and every moved image token keeps its grid position.
References: CM3 (arXiv:2201.07520), CM3Leon (arXiv:2309.02591: no span crosses a `<break>`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cm3.core.errors import InputError, UsageError
from cm3.tokens import Span, TokenizedDocument, Vocab

TOKENS_PER_SPAN = 3  # <mask:i> in the source, <mask:i> before the moved span, <eoss> after it


def mask_spans(
    document: TokenizedDocument,
    spans: Sequence[tuple[int, int]],
    vocab: Vocab,
    sentinel_weight: float = 0.0,
    source_weight: float = 1.0,
) -> TokenizedDocument:
    """Move `spans` behind the source, in their order; the document's own weights travel with its tokens.

    spans: positions [start, stop), sorted, not empty, not overlapping, each inside one segment. A sentinel weighs
    `sentinel_weight` times the first token of its span (CM3: 0, its place carries no information), `<eoss>` as much as
    the span's last token. `source_weight` scales all that stays in the source (0: learn only what fills the spans).
    The result's `spans` are the source's segments, sentinels included, then the contents of the moved spans.

    Raises `UsageError` for spans that break these rules or are more than the vocabulary has sentinels.
    """
    segments = _segments_of(document, spans, vocab)
    if not spans:
        return document
    order, holes, openings, ends = _moved_order(len(document), spans)
    token_ids = document.token_ids[order]  # (T + 3n,)
    grid_positions = document.grid_positions[order]
    loss_weights = document.loss_weights[order]
    for index, places in enumerate(zip(holes, openings, ends)):
        hole, opening, end = places
        token_ids[hole] = token_ids[opening] = vocab.mask_start + index
        token_ids[end] = vocab.eoss_id
        for place in places:
            grid_positions[place] = 0
        loss_weights[hole] *= sentinel_weight
        loss_weights[opening] *= sentinel_weight
    if source_weight != 1.0:
        loss_weights[: openings[0]] *= source_weight
    kept = _source_spans(document.spans, spans, segments)
    moved = [Span(document.spans[home].kind, opening + 1, end) for home, opening, end in zip(segments, openings, ends)]
    return TokenizedDocument(document.id, token_ids, grid_positions, (*kept, *moved), loss_weights)


def restore(token_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """Undo `mask_spans` on ids (T,): put every moved span back where its sentinel stands. Ids without masks stay.

    Raises `InputError` when the sentinels do not pair up (a sequence that is not finished or was tampered with).
    """
    return token_ids[restore_order(token_ids, vocab)]


def restore_order(token_ids: np.ndarray, vocab: Vocab) -> np.ndarray:
    """The positions (T',) int64 of a masked sequence (T,) in the order of the original; index any per-token array."""
    base = np.arange(len(token_ids))
    sentinels = np.flatnonzero(vocab.is_mask(token_ids))
    if len(sentinels) == 0:
        return base
    count = len(sentinels) // 2
    ends = np.flatnonzero(token_ids == vocab.eoss_id)
    names = token_ids[sentinels]
    paired = len(sentinels) == 2 * count == 2 * len(ends) and np.array_equal(names[:count], names[count:])
    if not paired or not np.array_equal(names[:count], vocab.mask_start + np.arange(count)):
        raise InputError("the masked sequence is not complete: its <mask:i> and <eoss> do not pair up")
    pieces, start = [], 0
    for hole, opening, end in zip(sentinels[:count], sentinels[count:], ends):
        pieces += [base[start:hole], base[opening + 1 : end]]
        start = hole + 1
    return np.concatenate([*pieces, base[start : sentinels[count]], base[ends[-1] + 1 :]])


def _moved_order(length: int, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, list[int], list[int], list[int]]:
    """Where each token of the masked sequence comes from, (T + 3n,) int64, and where the inserted tokens stand.

    These are the n sentinels in the source, the n before the moved spans, and the n `<eoss>`. An inserted token names
    the token it stands for: a sentinel the first of its span, `<eoss>` the last.
    """
    base = np.arange(length)
    pieces, holes, openings, ends = [], [], [], []
    copied = written = 0
    for start, stop in spans:
        pieces.append(base[copied : start + 1])  # the sentinel takes the place of the span's first token
        written += start + 1 - copied
        holes.append(written - 1)
        copied = stop
    pieces.append(base[copied : length - 1])
    written += length - 1 - copied
    for start, stop in spans:
        pieces += [base[start : start + 1], base[start:stop], base[stop - 1 : stop]]
        openings.append(written)
        written += stop - start + 2
        ends.append(written - 1)
    pieces.append(base[length - 1 :])
    return np.concatenate(pieces), holes, openings, ends


def _source_spans(segments: Sequence[Span], spans: Sequence[tuple[int, int]], homes: Sequence[int]) -> list[Span]:
    """The segments in the masked source: each span inside one has shrunk to its sentinel."""
    removed = [0] * len(segments)
    for (start, stop), home in zip(spans, homes):
        removed[home] += stop - start - 1
    kept, shift = [], 0
    for segment, fewer in zip(segments, removed):
        kept.append(Span(segment.kind, segment.start - shift, segment.stop - shift - fewer))
        shift += fewer
    return kept


def _segments_of(document: TokenizedDocument, spans: Sequence[tuple[int, int]], vocab: Vocab) -> list[int]:
    """For each span the number of the segment it lies in; raises `UsageError` as `mask_spans` promises."""
    if len(spans) > vocab.num_masks:
        raise UsageError(f"{len(spans)} spans need as many <mask:i>, the vocabulary has num_masks={vocab.num_masks}; mask fewer")
    homes, last = [], 0
    for start, stop in spans:
        if start >= stop or start < last:
            raise UsageError(f"span {start}..{stop} is empty or overlaps the one before; give sorted, separate spans")
        for number, segment in enumerate(document.spans):
            if segment.start <= start and stop <= segment.stop:
                homes.append(number)
                break
        else:
            raise UsageError(f"span {start}..{stop} does not lie inside one segment of the document")
        last = stop
    return homes
