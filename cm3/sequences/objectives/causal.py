"""The causal objective: the document as it is."""

from __future__ import annotations

import numpy as np

from cm3.sequences.objectives.config import ObjectiveConfig
from cm3.tokens import TokenizedDocument, Vocab


class Causal:
    """Next-token prediction from left to right; masks nothing."""

    def counts(self, size: int, rng: np.random.Generator, config: ObjectiveConfig) -> np.ndarray:
        """Zeros (size,)."""
        return np.zeros(size, np.int64)

    def __call__(
        self,
        document: TokenizedDocument,
        vocab: Vocab,
        rng: np.random.Generator,
        config: ObjectiveConfig,
        count: int | None = None,
    ) -> TokenizedDocument:
        """The document itself."""
        return document


causal = Causal()
