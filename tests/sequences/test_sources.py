"""Mixtures: exact shares at any point of the stream."""

import numpy as np
import pytest

from cm3.core.errors import InputError, UsageError
from cm3.sequences import Mixture


def test_shares_hold_at_every_prefix_and_never_fall(corpus):
    mixture = Mixture([(corpus, 0.01), (corpus, 5.0), (corpus, 2.5)])
    step = len(mixture.parts) ** 2
    taken = np.array([mixture.taken(count) for count in range(0, 5000, step)])
    counts = np.arange(0, 5000, step)
    assert (taken.sum(axis=1) == counts).all()
    assert (np.diff(taken, axis=0) >= 0).all()
    shares = np.array([0.01, 5.0, 2.5]) / 7.51
    assert (np.abs(taken - counts[:, None] * shares) <= len(shares)).all()


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_weights_must_be_positive(corpus, weight):
    with pytest.raises(UsageError, match="source 1 of the mixture has weight"):
        Mixture([(corpus, 1.0), (corpus, weight)])


def test_empty_mixtures_and_sources_are_refused(corpus):
    with pytest.raises(UsageError, match="at least one source"):
        Mixture([])
    with pytest.raises(InputError, match="source 1 of the mixture holds no document"):
        Mixture([(corpus, 1.0), ([], 1.0)])
