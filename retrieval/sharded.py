"""Several memory banks of one encoder searched side by side as one: every bank's best, merged by exact score.

Where no machine holds the whole index, or banks are built apart and change apart. Every bank scores its candidates exactly,
so the merged order is that of one bank of all documents; among equal scores the earlier bank goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cm3.core.errors import UsageError
from cm3.documents.document import Neighbor
from retrieval.bank import MemoryBank, open_bank, query_vector
from retrieval.index.protocol import MISSING, Hits


class ShardedBank:
    """Fulfils the protocol `Retriever` over `banks`. Raises `UsageError` for none, `ArtefactError` for different encoders.

    Row numbers count through all banks: those of the second begin after the last of the first.
    """

    def __init__(self, banks: Sequence[MemoryBank]) -> None:
        if not banks:
            raise UsageError("there are no banks to search; give at least one")
        for bank in banks[1:]:
            bank.require_encoder(banks[0].info.encoder)
        self.banks = list(banks)
        self._starts = np.cumsum([0, *map(len, banks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def search(self, text: str | None = None, image: Image.Image | None = None, k: int = 1) -> list[Neighbor]:
        """As `MemoryBank.search`, over all documents of all banks."""
        query = query_vector(self.banks[0], text, image)
        scores, rows = self.nearest(query, k)
        return self.read(scores[0], rows[0])

    def nearest(self, queries: np.ndarray, k: int) -> Hits:
        """As `MemoryBank.nearest`: scores (B, k) and rows (B, k)."""
        found = [bank.nearest(queries, k) for bank in self.banks]
        scores = np.concatenate([scores for scores, _ in found], axis=1)  # (B, sum of the banks' k)
        rows = [np.where(rows == MISSING, MISSING, rows + start) for (_, rows), start in zip(found, self._starts, strict=False)]
        every = np.concatenate(rows, axis=1)
        order = np.lexsort((every, -scores), axis=1)[:, : min(k, len(self))]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(every, order, 1)

    def read(self, scores: np.ndarray, rows: np.ndarray) -> list[Neighbor]:
        """The documents of one query's scores (k,) and rows (k,); missing ones are left out."""
        found = []
        for rank, (row, score) in enumerate(zip(rows[rows != MISSING].tolist(), scores[rows != MISSING].tolist(), strict=True)):
            number = int(np.searchsorted(self._starts, row, side="right")) - 1
            found.append(Neighbor(self.banks[number].store[row - int(self._starts[number])], score, rank))
        return found


def open_banks(paths: Sequence[Path | str], verified: bool = True, device: str = "cpu") -> MemoryBank | ShardedBank:
    """The bank at the one path, or all of several as one; `verified` and `device` as in `open_bank`.

    Raises what `open_bank` and `ShardedBank` raise.
    """
    banks = [open_bank(path, verified=verified, device=device) for path in paths]
    return banks[0] if len(banks) == 1 else ShardedBank(banks)
