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
from cm3.sequences.packing import count_rows, pack
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

    def items(self, start: int, stop: int) -> np.ndarray:
        """(stop − start, 4) int64: epoch, index, span count and reserved length of stream positions [start, stop)."""
        pieces = []
        size = len(self.usable)
        while start < stop:
            epoch, offset = divmod(start, size)
            taken = min(stop - start, size - offset)
            rows = self._epoch(epoch)[offset : offset + taken]
            pieces.append(np.concatenate([np.full((taken, 1), epoch), rows], axis=1))
            start += taken
        return np.concatenate(pieces) if pieces else np.empty((0, 4), np.int64)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """(N, 3): index, span count and reserved length of every usable document in the order of this epoch."""
        keys = (self._number, epoch)
        order = self.usable[numpy_generator(self._seed, "order", *keys).permutation(len(self.usable))]
        counts = self.objective.counts(len(self.source), numpy_generator(self._seed, "counts", *keys), self.config)
        lengths = self.source.lengths(epoch)
        room = np.maximum(0, self._row_length - lengths) // TOKENS_PER_SPAN
        fitting = np.minimum(counts, room)[order]
        return np.stack([order, fitting, lengths[order] + TOKENS_PER_SPAN * fitting], axis=1)


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
        table, rows = self._window(window)
        return [Entry(*fields) for fields in table[rows[number - self._rows_before[window]], :4].tolist()]

    def first_row(self, window: int) -> int:
        """The number of the first row of window `window` ≥ 0: how many rows all windows before it have."""
        while len(self._rows_before) <= window:
            reserved = np.concatenate([items[:, 3] for items in self._taken(len(self._rows_before) - 1)])
            self._rows_before.append(self._rows_before[-1] + count_rows(reserved, self._row_length))
        return self._rows_before[window]

    def position(self, row: int) -> tuple[int, list[float]]:
        """How many documents stand in the rows before `row`, and how many epochs of each source that is, about."""
        self.row(row)
        window = bisect_right(self._rows_before, row) - 1
        rows = self._window(window)[1][: row - self._rows_before[window]]
        documents = self._size * window + sum(len(members) for members in rows)
        taken = self._mixture.taken(documents).tolist()
        return documents, [count / len(stream.usable) for count, stream in zip(taken, self.streams)]

    def mean_context(self) -> float:
        """Length of the document around a token, on average over the first window: what attention looks at, twice."""
        lengths = self._window(0)[0][:, 4]
        return float((lengths**2).sum() / lengths.sum())

    def _make_window(self, window: int) -> tuple[np.ndarray, list[list[int]]]:
        """The documents of a window, (W, 5) int64: the fields of `Entry` and the reserved length; and its rows."""
        rng = numpy_generator(self._seed, "rows", window)
        items = self._taken(window)
        parts = np.repeat(np.arange(len(items)), [len(item) for item in items])
        table = np.concatenate([parts[:, None], np.concatenate(items)], axis=1)
        table = table[rng.permutation(len(table))]  # mixes the sources among documents of equal length
        rows = pack(table[:, 4], self._row_length)
        return table, [rows[row] for row in rng.permutation(len(rows)).tolist()]

    def _taken(self, window: int) -> list[np.ndarray]:
        """What a window takes from each stream, as `DocumentStream.items` gives it."""
        before, after = (self._mixture.taken(self._size * n).tolist() for n in (window, window + 1))
        return [stream.items(start, stop) for stream, start, stop in zip(self.streams, before, after)]
