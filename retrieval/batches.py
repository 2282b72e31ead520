"""Which pairs are in which step: shuffled passes over the data in batches of texts of similar length.

Similar lengths waste little on padding, and make the task harder in the right way: captions that say equally much cannot be told
apart by how much they say. A pure function of (seed, step): that is why resuming needs no loader state.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from cm3.core.seeding import numpy_generator

_JITTER = 2.0  # tokens; without it the same texts would meet in every pass


class LengthGroupedOrder:
    """Endless passes over N pairs whose texts have `lengths` (N,) tokens, `batch_size` pairs at a time.

    A pass leaves out the last few pairs that fill no batch, others in every pass; fewer pairs than a batch are repeated.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self._pass = lru_cache(maxsize=2)(self._make_pass)

    def rows(self, step: int) -> np.ndarray:
        """(batch_size,) numbers of the pairs of `step`, in random order."""
        batches = self._pass(step // max(len(self.lengths) // self.batch_size, 1))
        rows: np.ndarray = batches[step % len(batches)]
        return rows

    def _make_pass(self, number: int) -> np.ndarray:
        """(batches, batch_size): the batches of pass `number`, in the order of their steps."""
        rng, count = numpy_generator(self.seed, "order", number), len(self.lengths)
        order = np.argsort(self.lengths + rng.uniform(0, _JITTER, count))
        if count < self.batch_size:
            return np.resize(order, (1, self.batch_size))
        whole = count // self.batch_size * self.batch_size
        left_out = rng.permutation(count)[: count - whole]
        batches = np.delete(order, left_out).reshape(-1, self.batch_size)
        return rng.permuted(rng.permutation(batches), axis=1)
