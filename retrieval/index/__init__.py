"""Indexes over the vectors of a memory bank: one file per kind, listed here; all search by inner product.

    flat        exact: one matrix product and a top-k; no file of its own, it reads the vectors of the bank
    hnsw        a graph of near neighbors (arXiv:1603.09320): fast single queries, every vector in memory a second time
    ivf         vectors in lists around k-means centers, of which the nearest are scanned
    ivf_sq8     the same with 8 bits per dimension: a quarter of the memory
    ivf_pq      the same with half a bit to a bit per dimension, after a learned rotation (OPQ and 4-bit product quantizer)
    ivf_rabitq  the same with one bit per dimension (arXiv:2405.12497): nothing is learned, the fastest to build

All but the first score their candidates again with the bank's own vectors. `choose_index` is the documented default.
A new kind is one object that fulfils `IndexKind`, and one line here.
"""

from __future__ import annotations

from cm3.core.errors import UsageError
from cm3.core.registry import Registry
from retrieval.index.protocol import Footprint, IndexKind, VectorIndex

__all__ = ["EXACT_LIMIT", "INDEXES", "Footprint", "IndexKind", "VectorIndex", "choose_index"]

INDEXES = Registry(
    "index",
    {
        "flat": "retrieval.index.flat:FlatIndex",
        "hnsw": "retrieval.index.approximate:HNSW",
        "ivf": "retrieval.index.approximate:IVF",
        "ivf_sq8": "retrieval.index.approximate:IVF_SQ8",
        "ivf_pq": "retrieval.index.approximate:IVF_PQ",
        "ivf_rabitq": "retrieval.index.approximate:IVF_RABITQ",
    },
)

# An approximate index answers sooner at every size (`benchmarks/retrieval_search.py`), but finds 97 %, is built for seconds to
# minutes and again after every change, and takes memory of its own. So exact, as long as a search costs less than encoding its
# query: 54 ms over 200,000 × 512 on one core, where ViT-B/32 takes 65 for a short text and 207 for a picture.
EXACT_LIMIT = 200_000
_GRAPH_LIMIT = 5_000_000
_BY_MEMORY = ("flat", "hnsw", "ivf_sq8", "ivf_pq", "ivf_rabitq")


def choose_index(count: int, width: int = 512, memory_limit: int | None = None) -> str:
    """The default kind for (count, width) vectors: exact up to 200,000, a graph up to 5 million, compressed lists beyond.

    memory_limit: bytes; of the kinds that the size allows, the first that can be built and searched within them is taken, in the
    order flat, hnsw, ivf_sq8, ivf_pq, ivf_rabitq. Raises `UsageError`, with the estimates, when none can.
    """
    first = "flat" if count <= EXACT_LIMIT else "hnsw" if count <= _GRAPH_LIMIT else "ivf_sq8"
    kinds = _BY_MEMORY[_BY_MEMORY.index(first) :]
    if memory_limit is None:
        return first
    footprints: dict[str, Footprint] = {kind: INDEXES.get(kind).footprint(count, width) for kind in kinds}
    for kind, footprint in footprints.items():
        if footprint.build <= memory_limit:
            return kind
    estimates = ", ".join(f"{kind} {footprint.build / 2**30:.3g} GiB" for kind, footprint in footprints.items())
    raise UsageError(
        f"no index over {count:,} vectors of width {width} can be built within {memory_limit / 2**30:.3g} GiB of memory "
        f"(estimates: {estimates}); raise the limit, or build several smaller banks and search them together"
    )
