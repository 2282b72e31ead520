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
    kinds = _require_spans(document, spans, vocab)
    if not spans:
        return document
    order, sentinels, ends = _moved_order(len(document), spans)
    token_ids = document.token_ids[order]  # (T + 3n,)
    grid_positions = document.grid_positions[order]
    loss_weights = document.loss_weights[order]
    names = vocab.mask_start + np.arange(len(spans))
    token_ids[sentinels] = np.concatenate([names, names])
    token_ids[ends] = vocab.eoss_id
    grid_positions[sentinels] = 0
    grid_positions[ends] = 0
    loss_weights[sentinels] *= sentinel_weight
    if source_weight != 1.0:
        loss_weights[: sentinels[len(spans)]] *= source_weight
    moved = [Span(kind, int(end) - (stop - start), int(end)) for kind, end, (start, stop) in zip(kinds, ends, spans)]
    source = [_source_span(segment, spans) for segment in document.spans]
    return TokenizedDocument(document.id, token_ids, grid_positions, (*source, *moved), loss_weights)


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


def _moved_order(length: int, spans: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where each token of the masked sequence comes from, and where its sentinels (2n,) and `<eoss>` (n,) stand.

    An inserted token names the token it stands for: a sentinel the first of its span, `<eoss>` the last.
    """
    base = np.arange(length)
    source, moved, holes, openings, ends = [], [], [], [], []
    copied = written = 0
    for start, stop in spans:
        source.append(base[copied : start + 1])  # the sentinel takes the place of the span's first token
        written += start + 1 - copied
        holes.append(written - 1)
        copied = stop
    source.append(base[copied : length - 1])
    written += length - 1 - copied
    for start, stop in spans:
        moved += [base[start : start + 1], base[start:stop], base[stop - 1 : stop]]
        openings.append(written)
        written += stop - start + 2
        ends.append(written - 1)
    order = np.concatenate([*source, *moved, base[length - 1 :]])
    return order, np.array(holes + openings), np.array(ends)


def _source_span(segment: Span, spans: Sequence[tuple[int, int]]) -> Span:
    before = sum(stop - start - 1 for start, stop in spans if stop <= segment.start)
    inside = sum(stop - start - 1 for start, stop in spans if segment.start <= start and stop <= segment.stop)
    return Span(segment.kind, segment.start - before, segment.stop - before - inside)


def _require_spans(document: TokenizedDocument, spans: Sequence[tuple[int, int]], vocab: Vocab) -> list:
    if len(spans) > vocab.num_masks:
        raise UsageError(f"{len(spans)} spans need as many <mask:i>, the vocabulary has num_masks={vocab.num_masks}; mask fewer")
    kinds, last = [], 0
    for start, stop in spans:
        if start >= stop or start < last:
            raise UsageError(f"span {start}..{stop} is empty or overlaps the one before; give sorted, separate spans")
        home = next((segment.kind for segment in document.spans if segment.start <= start and stop <= segment.stop), None)
        if home is None:
            raise UsageError(f"span {start}..{stop} does not lie inside one segment of the document")
        kinds.append(home)
        last = stop
    return kinds
