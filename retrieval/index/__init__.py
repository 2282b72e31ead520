"""Indexes over the vectors of a memory bank: one file per kind, listed here; all search by inner product.

    flat     exact: one matrix product and a top-k; no file of its own, it reads the vectors of the bank
    hnsw     a graph of near neighbors (arXiv:1603.09320); fast single queries, needs all vectors in memory
    ivf      vectors in lists around k-means centers, of which the nearest are scanned

`choose_index` is the documented default. A new kind is one module with a class that has `build`, `save` and `load` and
fulfils `VectorIndex`, and one line here.
"""

from __future__ import annotations

from cm3.core.registry import Registry
from retrieval.index.protocol import VectorIndex

__all__ = ["EXACT_LIMIT", "INDEXES", "VectorIndex", "choose_index"]

INDEXES = Registry(
    "index",
    {
        "flat": "retrieval.index.flat:FlatIndex",
        "hnsw": "retrieval.index.hnsw:HNSWIndex",
        "ivf": "retrieval.index.ivf:IVFIndex",
    },
)

EXACT_LIMIT = 200_000
_GRAPH_LIMIT = 5_000_000


def choose_index(count: int) -> str:
    """The default kind for `count` vectors: exact up to 200,000, a graph up to 5 million, inverted lists beyond.

    Up to 200,000 vectors of 512 numbers an exact search takes some 25 ms on one CPU core and is always right; a graph holds
    every vector in memory twice, which inverted lists do not.
    """
    return "flat" if count <= EXACT_LIMIT else "hnsw" if count <= _GRAPH_LIMIT else "ivf"
