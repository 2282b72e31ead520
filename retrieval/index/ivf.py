"""Inverted lists: every vector in the list of its nearest k-means center; a query scans the lists of its nearest centers.

By faiss (arXiv:2401.08281). The number of scanned lists is set so that searches find at least 95 % of what an exact
one would; the bank measures what it became.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cm3.core.errors import InputError
from cm3.core.seeding import numpy_generator
from retrieval.index.faiss_files import ordered_hits, read_index, write_index
from retrieval.index.flat import FlatIndex
from retrieval.index.protocol import Hits
from retrieval.index.threads import one_thread

_PER_CENTER = 39  # faiss's least number of training vectors per center
_RECALL_TARGET = 0.97
_PROBES = 256  # vectors of the bank itself that serve as queries when nprobe is set


class IVFIndex:
    """Fulfils `VectorIndex` by about 4·√N lists of uncompressed vectors."""

    def __init__(self, index: faiss.IndexIVFFlat) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors: np.ndarray, seed: int) -> IVFIndex:
        """Cluster a sample, fill the lists, and set how many of them a query scans."""
        count, width = vectors.shape
        if count < _PER_CENTER * 4:
            raise InputError(f"an ivf index needs at least {_PER_CENTER * 4} vectors, got {count}; use the flat index")
        lists = min(int(4 * count**0.5), count // _PER_CENTER)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = seed % 2**31
        rng = numpy_generator(seed, "ivf")
        sample = np.sort(rng.permutation(count)[: lists * 256])
        with one_thread():
            index.train(np.ascontiguousarray(vectors[sample], np.float32))
            index.add(np.ascontiguousarray(vectors, np.float32))
            _set_breadth(index, vectors, vectors[np.sort(rng.permutation(count)[:_PROBES])])
        return cls(index)

    @classmethod
    def load(cls, folder: Path, vectors: np.ndarray) -> IVFIndex:
        """Read the lists and check them against `vectors`."""
        return cls(read_index(folder, vectors, faiss.IndexIVFFlat))

    def save(self, folder: Path) -> None:
        """Write the lists; how many a query scans is kept with them."""
        write_index(self.index, folder)

    def describe(self) -> dict[str, Any]:
        """The number of lists, and of those that a query scans."""
        return {"kind": "ivf", "exact": False, "lists": self.index.nlist, "scanned": self.index.nprobe}

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The `k` best vectors in the scanned lists."""
        return ordered_hits(*self.index.search(np.ascontiguousarray(queries, np.float32), k))


def _set_breadth(index: faiss.IndexIVFFlat, vectors: np.ndarray, queries: np.ndarray) -> None:
    """Double `nprobe` until the ten nearest of `queries` are found well enough."""
    k = min(10, len(vectors))
    _, expected = FlatIndex(vectors).search(queries, k)
    index.nprobe = 1
    while index.nprobe < index.nlist:
        _, found = index.search(queries, k)
        hit = np.mean([np.isin(want, got).mean() for want, got in zip(expected, found, strict=True)])
        if hit >= _RECALL_TARGET:
            return
        index.nprobe = min(2 * index.nprobe, index.nlist)
