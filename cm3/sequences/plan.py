"""The plan: which documents stand in which row, for every row of an endless training run, from lengths alone.

The stream of documents is cut into windows. A window takes from each source its share, packs what it took into rows
(best-fit decreasing) and shuffles the rows; every document of the window is in exactly one row. So row r, and with it
every batch, is a function of (seed, r), over an epoch no document is lost or doubled, and resuming needs no saved state:
the rows before r are counted again, from lengths, without reading a document.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cm3.core.errors import InputError
from cm3.core.seeding import numpy_generator
from cm3.sequences.masking import TOKENS_PER_SPAN
from cm3.sequences.objectives import OBJECTIVES, ObjectiveConfig
from cm3.sequences.packing import pack
from cm3.sequences.sources import Mixture, Part, Source


@dataclass(frozen=True)
class Entry:
    """One document of a row: which part of the mixture, which epoch, which index, and how many spans it may mask."""

    part: int
    epoch: int
    index: int
    count: int


class DocumentStream:
    """One part of a mixture as an endless stream: epochs in seeded order, with lengths and span counts reserved.

    usable: indices of the documents that fit a row; skipped: how many do not.
    """

    def __init__(self, part: Part, number: int, config: ObjectiveConfig, row_length: int, seed: int) -> None:
        self.source: Source = part.source
        self.config = part.objective or config
        self.objective = OBJECTIVES.get(self.config.name)
        self._number, self._row_length, self._seed = number, row_length, seed
        self.usable = np.flatnonzero(self.source.lengths(0) <= row_length)
        self.skipped = len(self.source) - len(self.usable)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def items(self, start: int, stop: int) -> list[tuple[int, int, int, int]]:
        """(epoch, index, count, reserved length) of stream positions [start, stop)."""
        items = []
        size = len(self.usable)
        while start < stop:
            epoch, offset = divmod(start, size)
            taken = min(stop - start, size - offset)
            columns = self._epoch(epoch)[:, offset : offset + taken].tolist()
            items += [(epoch, *rest) for rest in zip(*columns)]
            start += taken
        return items

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """(3, N): index, span count and reserved length of every usable document in the order of this epoch."""
        keys = (self._number, epoch)
        order = self.usable[numpy_generator(self._seed, "order", *keys).permutation(len(self.usable))]
        counts = self.objective.counts(len(self.source), numpy_generator(self._seed, "counts", *keys), self.config)
        lengths = self.source.lengths(epoch)
        fitting = np.minimum(counts, (self._row_length - lengths) // TOKENS_PER_SPAN)[order]
        return np.stack([order, fitting, lengths[order] + TOKENS_PER_SPAN * fitting])


class RowPlan:
    """Rows of document entries, by number. `window` is how many documents are packed together.

    Raises `InputError` when a source has no document that fits a row.
    """

    def __init__(self, mixture: Mixture, config: ObjectiveConfig, row_length: int, window: int, seed: int) -> None:
        self.streams = [DocumentStream(part, n, config, row_length, seed) for n, part in enumerate(mixture.parts)]
        for number, stream in enumerate(self.streams):
            if len(stream.usable) == 0:
                raise InputError(f"no document of source {number} fits a row of {row_length} tokens; use longer rows")
        self._mixture, self._row_length, self._seed = mixture, row_length, seed
        self._size = max(window, len(self.streams) ** 2)
        self._rows_before = [0]  # rows in all windows before window k
        self._window = lru_cache(maxsize=4)(self._make_window)

    def row(self, number: int) -> list[Entry]:
        """The documents of row `number` ≥ 0."""
        while self._rows_before[-1] <= number:
            self.first_row(len(self._rows_before))
        window = bisect_right(self._rows_before, number) - 1
        return self._window(window)[number - self._rows_before[window]]

    def first_row(self, window: int) -> int:
        """The number of the first row of window `window` ≥ 0: how many rows all windows before it have."""
        while len(self._rows_before) <= window:
            rows = self._window(len(self._rows_before) - 1)
            self._rows_before.append(self._rows_before[-1] + len(rows))
        return self._rows_before[window]

    def _make_window(self, window: int) -> list[list[Entry]]:
        rng = numpy_generator(self._seed, "rows", window)
        before, after = (self._mixture.taken(self._size * n) for n in (window, window + 1))
        entries, lengths = [], []
        for part, stream in enumerate(self.streams):
            for epoch, index, count, length in stream.items(int(before[part]), int(after[part])):
                entries.append(Entry(part, epoch, index, count))
                lengths.append(length)
        order = rng.permutation(len(entries)).tolist()  # mixes the sources among documents of equal length
        rows = pack(np.array(lengths, np.int64)[order], self._row_length)
        return [[entries[order[item]] for item in rows[row]] for row in rng.permutation(len(rows)).tolist()]
