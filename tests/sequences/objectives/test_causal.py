"""The causal objective changes nothing."""

import numpy as np

from cm3.sequences import OBJECTIVES, ObjectiveConfig

CONFIG = ObjectiveConfig(name="causal")


def test_documents_stay_as_they_are(vocab, make):
    causal, document = OBJECTIVES.get("causal"), make("ti")
    assert causal(document, vocab, np.random.default_rng(0), CONFIG) is document
    assert causal.counts(5, np.random.default_rng(0), CONFIG).tolist() == [0] * 5
