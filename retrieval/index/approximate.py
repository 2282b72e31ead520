"""Approximate search by faiss (arXiv:2401.08281): few vectors are looked at, compressed if need be, and the best scored exactly.

    query → candidates of the faiss index → exact inner products with the bank's own vectors → the k best

The exact scores make all kinds agree on what a score is and on the order among equals, and give compressed vectors back most
of what compression lost. Built by one thread, so that the same vectors and seed give the same file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cm3.core.errors import ArtefactError, InputError
from cm3.core.seeding import numpy_generator
from retrieval.index.faiss_files import read_index, write_index
from retrieval.index.flat import FlatIndex
from retrieval.index.protocol import Hits
from retrieval.index.scoring import exact_hits
from retrieval.index.threads import one_thread

_PER_CENTER = 39  # vectors faiss wants for training one center; below that it prints warnings
_SAMPLE_PER_CENTER = 256
_PROBE_QUERIES = 256
_PROBE_RECALL = 0.97
_CODE_CENTERS = 16  # of a product quantizer with 4 bits


@dataclass(frozen=True)
class ApproximateKind:
    """A kind of approximate index; its instances are what the registry lists.

    recipe: faiss factory string; "{lists}" is the number of inverted lists, "{codes}" that of product quantizer codes.
    rerank: candidates per wanted neighbor that are scored exactly.
    """

    name: str
    recipe: str
    rerank: int

    def build(self, vectors: np.ndarray, seed: int) -> ApproximateIndex:
        """Train on a sample, add all vectors, and set how much of the index a query looks at. See `IndexKind.build`."""
        count, width = vectors.shape
        self._require(count)
        lists = max(1, min(int(4 * count**0.5), count // _PER_CENTER))
        recipe = self.recipe.format(lists=lists, codes=_codes(width))
        index = faiss.index_factory(width, recipe, faiss.METRIC_INNER_PRODUCT)
        rng = numpy_generator(seed, "index")
        sample = np.sort(rng.permutation(count)[: max(lists, _CODE_CENTERS) * _SAMPLE_PER_CENTER])
        built = ApproximateIndex(self, recipe, index, vectors)
        with one_thread():
            if built.lists is not None:
                built.lists.cp.seed = seed % 2**31
            index.train(np.ascontiguousarray(vectors[sample]))
            index.add(np.ascontiguousarray(vectors))
            if built.lists is not None:
                _set_breadth(built, vectors[np.sort(rng.permutation(count)[:_PROBE_QUERIES])])
        return built

    def load(self, folder: Path, vectors: np.ndarray, description: Mapping[str, Any]) -> ApproximateIndex:
        """Read the index and check it against `vectors` and its own description. See `IndexKind.load`."""
        loaded = ApproximateIndex(self, str(description.get("recipe", "")), read_index(folder, vectors), vectors)
        if (found := loaded.describe()) != description:
            raise ArtefactError(f"{folder} holds an index {found}, but is described as {dict(description)}; build it again")
        return loaded

    def _require(self, count: int) -> None:
        least = _PER_CENTER * (_CODE_CENTERS if "PQ" in self.recipe else 4) if "{lists}" in self.recipe else 1
        if count < least:
            raise InputError(f"an index of kind {self.name!r} needs at least {least} vectors, got {count}; use 'flat'")


class ApproximateIndex:
    """Fulfils `VectorIndex` by a faiss index over `vectors` (N, E), which may be memory-mapped."""

    def __init__(self, kind: ApproximateKind, recipe: str, index: Any, vectors: np.ndarray) -> None:
        self.kind, self.recipe, self.index, self.vectors = kind, recipe, index, vectors
        self.lists: Any = faiss.try_extract_index_ivf(index)  # None for a graph

    def save(self, folder: Path) -> None:
        """Write the index; its vectors stay the bank's."""
        write_index(self.index, folder)

    def describe(self) -> dict[str, Any]:
        """The recipe, how many of its lists a query scans, and how many candidates per neighbor are scored exactly."""
        scanned = {} if self.lists is None else {"scanned_lists": int(self.lists.nprobe)}
        return {"kind": self.kind.name, "exact": False, "recipe": self.recipe, "rerank": self.kind.rerank, **scanned}

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The `k` best of `k · rerank` candidates."""
        wanted = min(max(k * self.kind.rerank, 16), len(self.vectors))
        queries = np.ascontiguousarray(queries, np.float32)
        parameters = None if self.lists is not None else _walk(wanted)
        _, rows = self.index.search(queries, wanted, params=parameters)
        return exact_hits(queries, self.vectors, rows, k)


def _walk(wanted: int) -> Any:
    """How broadly a graph is walked for `wanted` candidates; per search, since searches may run side by side."""
    return faiss.SearchParametersHNSW(efSearch=max(2 * wanted, 96))  # type: ignore[attr-defined]


def _codes(width: int) -> int:
    """Codes of a product quantizer: one per four dimensions, as near as the width divides."""
    return next(codes for codes in range(max(width // 4, 1), 0, -1) if width % codes == 0)


def _set_breadth(built: ApproximateIndex, queries: np.ndarray) -> None:
    """Double the number of scanned lists until the ten nearest of `queries` are found well enough."""
    k = min(10, len(built.vectors))
    _, expected = FlatIndex(built.vectors).search(queries, k)
    built.lists.nprobe = 1
    while built.lists.nprobe < built.lists.nlist:
        _, found = built.search(queries, k)
        if np.mean([np.isin(want, got).mean() for want, got in zip(expected, found, strict=True)]) >= _PROBE_RECALL:
            return
        built.lists.nprobe = min(2 * built.lists.nprobe, built.lists.nlist)


HNSW = ApproximateKind("hnsw", "HNSW32", rerank=1)
IVF = ApproximateKind("ivf", "IVF{lists},Flat", rerank=1)
IVF_SQ8 = ApproximateKind("ivf_sq8", "IVF{lists},SQ8", rerank=4)
IVF_PQ = ApproximateKind("ivf_pq", "OPQ{codes},IVF{lists},PQ{codes}x4fsr", rerank=10)
IVF_RABITQ = ApproximateKind("ivf_rabitq", "IVF{lists},RaBitQ", rerank=20)
