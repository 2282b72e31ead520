"""HNSW: a graph of near neighbors walked greedily from the top layer (arXiv:1603.09320), by faiss.

Built by one thread, in the order of the vectors, so that the same vectors give the same file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retrieval.index.faiss_files import ordered_hits, read_index, write_index
from retrieval.index.protocol import Hits
from retrieval.index.threads import one_thread

_LINKS = 32
_BUILD_BREADTH = 100
_SEARCH_BREADTH = 96


class HNSWIndex:
    """Fulfils `VectorIndex` by a graph with 32 links per vector; holds all vectors in memory."""

    def __init__(self, index: faiss.IndexHNSWFlat) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors: np.ndarray, seed: int) -> HNSWIndex:
        """Insert the vectors one by one; the levels are drawn by faiss from its own fixed seed."""
        index = faiss.IndexHNSWFlat(vectors.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _BUILD_BREADTH
        with one_thread():
            index.add(np.ascontiguousarray(vectors, np.float32))
        return cls(index)

    @classmethod
    def load(cls, folder: Path, vectors: np.ndarray) -> HNSWIndex:
        """Read the graph and check it against `vectors`."""
        return cls(read_index(folder, vectors, faiss.IndexHNSWFlat))

    def save(self, folder: Path) -> None:
        """Write the graph with its vectors."""
        write_index(self.index, folder)

    def describe(self) -> dict[str, Any]:
        """Links per vector and the breadths of building and searching."""
        return {"kind": "hnsw", "exact": False, "links": _LINKS, "build": _BUILD_BREADTH, "search": _SEARCH_BREADTH}

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The `k` best vectors met on the walk; at least as broad as `k`."""
        settings = faiss.SearchParametersHNSW(efSearch=max(_SEARCH_BREADTH, 2 * k))  # type: ignore[attr-defined]
        return ordered_hits(*self.index.search(np.ascontiguousarray(queries, np.float32), k, params=settings))
