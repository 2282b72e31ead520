"""Fill-in-the-middle: prefix and suffix first, the middle last (arXiv:2207.14255, arXiv:2204.05999).

The same layout as CM3 with a single span, so one decoder serves both: `prefix <mask:0> suffix <mask:0> middle <eoss>`.
"""

from __future__ import annotations

import numpy as np

from cm3.sequences.masking import mask_spans
from cm3.sequences.objectives.config import ObjectiveConfig
from cm3.sequences.spans import draw_spans
from cm3.tokens import TokenizedDocument, Vocab


class FillInMiddle:
    """One random span in a share `fill_rate` of the documents; the rest stay causal."""

    def counts(self, size: int, rng: np.random.Generator, config: ObjectiveConfig) -> np.ndarray:
        """(size,) int64 of zeros and ones."""
        return (rng.random(size) < config.fill_rate).astype(np.int64)

    def __call__(
        self,
        document: TokenizedDocument,
        vocab: Vocab,
        rng: np.random.Generator,
        config: ObjectiveConfig,
        count: int | None = None,
    ) -> TokenizedDocument:
        """Move one span behind the document when `count` is 1."""
        if count is None:
            count = int(self.counts(1, rng, config)[0])
        return mask_spans(document, draw_spans(document, min(count, 1), rng), vocab, float(config.sentinel_weight))


fill_in_middle = FillInMiddle()
