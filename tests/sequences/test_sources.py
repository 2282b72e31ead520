"""Mixtures: exact shares at any point of the stream."""

import numpy as np
import pytest

from cm3.core.errors import InputError, UsageError
from cm3.sequences import Mixture


def test_shares_hold_at_every_prefix_and_never_fall(corpus):
    weights = [0.01, 0.02, 3.3, 3.1, 3.2]
    mixture = Mixture([(corpus, weight) for weight in weights])
    counts = np.arange(0, 5000, len(weights) ** 2)
    taken = np.array([mixture.taken(count) for count in counts.tolist()])
    assert (taken.sum(axis=1) == counts).all()
    assert (np.diff(taken, axis=0) >= 0).all()
    shares = np.array(weights) / sum(weights)
    assert (np.abs(taken - counts[:, None] * shares) <= len(weights)).all()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weights_must_be_positive(corpus, weight):
    with pytest.raises(UsageError, match="source 1 of the mixture has weight"):
        Mixture([(corpus, 1.0), (corpus, weight)])


def test_empty_mixtures_and_sources_are_refused(corpus):
    with pytest.raises(UsageError, match="at least one source"):
        Mixture([])
    with pytest.raises(InputError, match="source 1 of the mixture holds no document"):
        Mixture([(corpus, 1.0), ([], 1.0)])
