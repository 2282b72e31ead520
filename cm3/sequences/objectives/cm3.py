"""The CM3 objective: a few random spans move behind the document (arXiv:2201.07520, arXiv:2309.02591)."""

from __future__ import annotations

import numpy as np

from cm3.sequences.masking import mask_spans
from cm3.sequences.objectives.config import ObjectiveConfig
from cm3.sequences.spans import draw_counts, draw_spans, draw_whole_text
from cm3.tokens import TokenizedDocument, Vocab


class CM3:
    """Causally masked language modeling over segments of text and pictures."""

    def counts(self, size: int, rng: np.random.Generator, config: ObjectiveConfig) -> np.ndarray:
        """(size,) int64 by `config.count_law`."""
        return draw_counts(size, rng, config.count_law, config.span_rate, config.max_spans)

    def __call__(
        self,
        document: TokenizedDocument,
        vocab: Vocab,
        rng: np.random.Generator,
        config: ObjectiveConfig,
        count: int | None = None,
    ) -> TokenizedDocument:
        """Mask `count` spans (fewer where they would overlap), or now and then one whole text segment instead."""
        if count is None:
            count = int(self.counts(1, rng, config)[0])
        if count == 0:
            return document
        spans = draw_whole_text(document, rng) if rng.random() < config.whole_segment_prob else []
        spans = spans or draw_spans(document, min(count, vocab.num_masks), rng)
        return mask_spans(document, spans, vocab, float(config.sentinel_weight))


cm3 = CM3()
