"""The order of segments: text before picture as a rule, the picture first now and then (Chameleon: half the time)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cm3.tokens import TokenizedDocument, Vocab
from cm3.tokens.tokenized import assemble


def image_first(document: TokenizedDocument, vocab: Vocab, rng: np.random.Generator, prob: float) -> TokenizedDocument:
    """With probability `prob`, turn a (text, image) pair around; any other document stays as it is."""
    if prob == 0.0 or [span.kind for span in document.spans] != ["text", "image"]:
        return document
    return reorder(document, (1, 0), vocab) if rng.random() < prob else document


def reorder(document: TokenizedDocument, order: Sequence[int], vocab: Vocab) -> TokenizedDocument:
    """The same segments in another order; a segment's weights travel with it, the delimiters keep theirs in place."""
    spans = [document.spans[index] for index in order]
    result = assemble([(span.kind, document.token_ids[span.start : span.stop]) for span in spans], vocab, document.id)
    delimiters = [0, *(span.stop for span in document.spans)]
    result.loss_weights[[0, *(span.stop for span in result.spans)]] = document.loss_weights[delimiters]
    for old, new in zip(spans, result.spans):
        result.loss_weights[new.start : new.stop] = document.loss_weights[old.start : old.stop]
    return result
