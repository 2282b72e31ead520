"""How much of what an exact search finds another search finds, told by scores: among equals no one is the right one.

Documents that a bank holds several times have equal vectors, and which of them an index comes upon makes no difference. So a
hit counts by its score, as in ann-benchmarks (arXiv:1807.05614); where none are equal, that is the share of common ids.
Shape letters: B queries.
"""

from __future__ import annotations

import numpy as np

from retrieval.index.protocol import Hits

_EQUAL = 1e-6  # scores of unit vectors in float32 that differ by less may be of equal vectors


def recall_shares(expected: Hits, found: Hits) -> np.ndarray:
    """For hits (B, k) of an exact search and (B, k) of another: (B,) shares in [0, 1] of the first that the second has too.

    A hit at the k-th exact score stands for any of its equals, but not for one that is nearer.
    """
    exact, other = expected[0], found[0]
    last = exact[:, -1:]
    nearer = other > last + _EQUAL
    equal = ~nearer & (other >= last - _EQUAL)
    places = (exact <= last + _EQUAL).sum(axis=1)  # that equals of the k-th take among the exact k
    shares: np.ndarray = (nearer.sum(axis=1) + np.minimum(equal.sum(axis=1), places)) / exact.shape[1]
    return shares
