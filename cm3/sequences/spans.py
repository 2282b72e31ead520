"""Which spans to mask: the count laws and the span law of CM3, as pure functions of a generator.

Counts: "cm3" is clamp(Poisson(rate), 1, max_spans) (arXiv:2201.07520), "metaseq" clamp(Poisson(rate), 0, max_spans),
the public training code of CM3Leon, which leaves some documents causal. A span is two sorted uniforms over the document,
clipped to the segment it overlaps most, so it never crosses a `<break>`; it can be empty, a single one in a document of T
tokens once in 4 T times, which then stays as it is. Several spans are picked from n² candidates so that none overlap. The laws
hold for the counts asked for; fewer are masked where the candidates overlap, as they often do whatever the length, since a
span is a third of the document on average (of three in one segment all three are found half of the time), and where a row has
no room for `TOKENS_PER_SPAN` more per span (`cm3.sequences.plan` lowers the counts then).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from cm3.tokens import TokenizedDocument

CountLaw = Literal["cm3", "metaseq"]


def draw_counts(size: int, rng: np.random.Generator, law: CountLaw, rate: float, max_spans: int) -> np.ndarray:
    """How many spans each of `size` documents gets: (size,) int64."""
    return np.clip(rng.poisson(rate, size), 1 if law == "cm3" else 0, max_spans)


def draw_spans(document: TokenizedDocument, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """At most `count` separate spans [start, stop), sorted, each inside one segment."""
    kept: list[tuple[int, int]] = []
    for start, stop in _candidates(document, count, rng):
        if all(stop <= other_start or other_stop <= start for other_start, other_stop in kept):
            kept.append((start, stop))
        if len(kept) == count:
            break
    return sorted(kept)


def draw_whole_text(document: TokenizedDocument, rng: np.random.Generator) -> list[tuple[int, int]]:
    """One whole text segment as a span, or nothing when there is no text."""
    texts = [(span.start, span.stop) for span in document.spans if span.kind == "text"]
    return [texts[int(rng.integers(len(texts)))]] if texts else []


def _candidates(document: TokenizedDocument, count: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    content = len(document) - 2  # between <bos> and <eos>
    for first, second in rng.random((count * count, 2)).tolist():
        low, high = (first, second) if first < second else (second, first)
        start, stop = _clip_to_segment(document, 1 + int(low * content), 1 + int(high * content + 0.5))
        if start < stop:
            yield start, stop


def _clip_to_segment(document: TokenizedDocument, start: int, stop: int) -> tuple[int, int]:
    best = (0, 0)
    for span in document.spans:
        clipped = (max(start, span.start), min(stop, span.stop))
        if clipped[1] - clipped[0] > best[1] - best[0]:
            best = clipped
    return best
