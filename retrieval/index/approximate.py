"""Approximate search by faiss (arXiv:2401.08281): few vectors are looked at, compressed if need be, and the best scored exactly.

    query → candidates of the faiss index → exact inner products with the bank's own vectors → the k best

The exact scores give compressed vectors back most of what compression lost; an index of whole vectors has them already, to the
rounding of float32. So all kinds agree on what a score is and on the order among equals. Built by one thread, so that the same
vectors and seed give the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from faiss import swig_ptr

from cm3.core.errors import ArtefactError, InputError
from cm3.core.progress import progress
from cm3.core.seeding import numpy_generator
from retrieval.index.faiss_files import read_index, write_index
from retrieval.index.flat import FlatIndex
from retrieval.index.protocol import Footprint, Hits
from retrieval.index.recall import recall_shares
from retrieval.index.scoring import exact_hits, ordered
from retrieval.index.threads import one_thread

_PER_CENTER = 39  # vectors faiss wants for training one center; below that it prints warnings
_SAMPLE_PER_CENTER = 64  # 256, faiss's most, costs four times the memory and time for hardly better centers
_CODE_CENTERS = 16  # of a product quantizer with 4 bits
_ROTATION_ROUNDS = 20  # 50, faiss's own, take twice as long and find half a percent more before exact scores, none after them
_TUNED_AT = 10
_LEAST_WALK = 32  # a graph walk narrower than this saves no time
_WIDEST_WALK = 8192
_MOST_RERANK = 160
_ADDED = 16_384  # vectors added at a time: an index with a rotation holds a rotated copy of what is added
_WORKSPACE = 48 * 2**20  # what training and tuning take whatever the size, measured on small banks


@dataclass(frozen=True)
class ApproximateKind:
    """A kind of approximate index; its instances are what the registry lists.

    recipe: faiss factory string; "{lists}" is the number of inverted lists, "{codes}" that of product quantizer codes.
    classes: the faiss classes that its file holds, and no others (see `classes_of`).
    rerank: candidates per wanted neighbor that are scored exactly, at least.
    vector_bytes: from the width of a vector to the bytes of memory it takes.
    """

    name: str
    recipe: str
    classes: tuple[str, ...]
    rerank: int
    vector_bytes: Callable[[int], int]

    def footprint(self, count: int, width: int) -> Footprint:
        """See `IndexKind.footprint`.

        To build, lists also need the training sample, or a block to add, and a rotated copy of it. A graph keeps its vectors in
        one array, which doubles as they come: for a moment the old one stands beside the new.
        """
        lists = _lists(count) if self.has_lists else 0
        search = count * self.vector_bytes(width) + 4 * width * lists
        if not self.has_lists:
            return Footprint(search, search + max(_WORKSPACE, 4 * width * (2 * _before_doubling(count) - count)))
        copied = max(_sample_size(count, lists), min(count, _ADDED) if "OPQ" in self.recipe else 0)
        return Footprint(search, search + 2 * 4 * width * copied + _WORKSPACE)

    @property
    def has_lists(self) -> bool:
        """Whether vectors stand in inverted lists, and not in a graph."""
        return "{lists}" in self.recipe

    def build(self, vectors: np.ndarray, seed: int) -> ApproximateIndex:
        """Train on a sample and add all vectors. See `IndexKind.build`."""
        count, width = vectors.shape
        self.require(count)
        lists = _lists(count)
        recipe = self.recipe.format(lists=lists, codes=_codes(width))
        index: Any = faiss.index_factory(width, recipe, faiss.METRIC_INNER_PRODUCT)
        if "OPQ" in recipe:  # unless told, faiss learns the rotation for 8-bit codes: nine times slower, and worse for these
            codes = faiss.ProductQuantizer(width, _codes(width), 4)
            rotation: Any = faiss.downcast_VectorTransform(index.chain.at(0))
            rotation.pq, rotation.niter = codes, _ROTATION_ROUNDS
        sample = np.sort(numpy_generator(seed, "index").permutation(count)[: _sample_size(count, lists)])
        built = ApproximateIndex(self, recipe, index, vectors)
        with one_thread():
            if built.lists is not None:
                built.lists.cp.seed = seed % 2**31
                index.train(np.ascontiguousarray(vectors[sample]))
            with progress(count, f"{self.name} index", unit="vector") as bar:
                for start in range(0, count, _ADDED):
                    index.add(np.ascontiguousarray(vectors[start : start + _ADDED]))
                    bar.advance(min(_ADDED, count - start))
        return built

    def load(self, folder: Path, vectors: np.ndarray, description: Mapping[str, Any], device: str = "cpu") -> ApproximateIndex:
        """Read the index and check it against `vectors` and its own description; faiss searches on the CPU whatever `device` is.

        See `IndexKind.load`."""
        loaded = ApproximateIndex(self, str(description.get("recipe", "")), read_index(folder, vectors, self.classes), vectors)
        loaded.rerank = int(description.get("rerank", self.rerank))
        if loaded.lists is None:  # the file of lists holds their breadth, that of a graph does not
            loaded.breadth = int(description.get("breadth", loaded.breadth))
        if (found := loaded.describe()) != description:
            raise ArtefactError(f"{folder} holds an index {found}, but is described as {dict(description)}; build it again")
        return loaded

    def require(self, count: int) -> None:
        """See `IndexKind.require`."""
        least = _PER_CENTER * (_CODE_CENTERS if "PQ" in self.recipe else 4) if self.has_lists else 1
        if count < least:
            raise InputError(f"an index of kind {self.name!r} needs at least {least} vectors, got {count}; use 'flat'")


class ApproximateIndex:
    """Fulfils `VectorIndex` by a faiss index over `vectors` (N, E), which may be memory-mapped.

    breadth: how many lists a query scans, or how many vectors a walk through a graph keeps in view. rerank: candidates per
    wanted neighbor that are scored exactly. Both are set by `tune`.
    """

    def __init__(self, kind: ApproximateKind, recipe: str, index: Any, vectors: np.ndarray) -> None:
        self.kind, self.recipe, self.index, self.vectors = kind, recipe, index, vectors
        self.lists: Any = faiss.try_extract_index_ivf(index)  # None for a graph
        self.rerank, self._walk = kind.rerank, _LEAST_WALK

    @property
    def breadth(self) -> int:
        """See the class text."""
        return self._walk if self.lists is None else int(self.lists.nprobe)

    @breadth.setter
    def breadth(self, value: int) -> None:
        if self.lists is None:
            self._walk = value
        else:
            self.lists.nprobe = value

    def tune(self, queries: np.ndarray, target: float) -> None:
        """The least breadth that finds a share `target` of the ten nearest: doubled until it does, then halved down to it.

        Before that, compressed vectors get as many candidates to score exactly as `target` needs where all lists are scanned.
        """
        k = min(_TUNED_AT, len(self.vectors))
        expected = FlatIndex(self.vectors).search(queries, k)
        least, most = (1, int(self.lists.nlist)) if self.lists is not None else (_LEAST_WALK, _WIDEST_WALK)

        def reached(breadth: int) -> bool:
            self.breadth = breadth
            return bool(recall_shares(expected, self.search(queries, k)).mean() >= target)

        while self.rerank > 1 and not reached(most) and self.rerank < _MOST_RERANK:
            self.rerank *= 2
        low, high = 0, least
        while not reached(high) and high < most:
            low, high = high, min(2 * high, most)
        while low and high - low > max(low // 8, 1):
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle) else (middle, high)
        self.breadth = high

    def save(self, folder: Path) -> None:
        """Write the index; its vectors stay the bank's."""
        write_index(self.index, folder)

    def describe(self) -> dict[str, Any]:
        """The recipe, the breadth of a search, and how many candidates per neighbor are scored exactly."""
        settings = {"rerank": self.rerank, "breadth": self.breadth}
        return {"kind": self.kind.name, "exact": False, "recipe": self.recipe, **settings}

    def search(self, queries: np.ndarray, k: int) -> Hits:
        """The `k` best of `k · rerank` candidates; an index of whole vectors has scored them already.

        This is `index.search` without the checks that faiss's Python makes around it: for one query they show.
        """
        count, width = self.vectors.shape
        wanted = min(k * self.rerank, count)
        parameters = None
        if self.lists is None:  # per search, since searches may run side by side
            parameters = _walk_parameters(max(self._walk, wanted, 16))
        queries = np.ascontiguousarray(queries, np.float32)
        assert queries.shape[1] == width
        scores, rows = np.empty((len(queries), wanted), np.float32), np.empty((len(queries), wanted), np.int64)
        self.index.search_c(len(queries), swig_ptr(queries), wanted, swig_ptr(scores), swig_ptr(rows), parameters)
        if self.kind.rerank > 1:
            return exact_hits(queries, self.vectors, rows, k)
        return ordered(scores, rows)


@lru_cache(maxsize=64)
def _walk_parameters(breadth: int) -> Any:
    return faiss.SearchParametersHNSW(efSearch=breadth)  # type: ignore[attr-defined]


def _lists(count: int) -> int:
    """Inverted lists for `count` vectors: four times the square root, as faiss advises, but none without vectors to train on."""
    return max(1, min(int(4 * count**0.5), count // _PER_CENTER))


def _before_doubling(count: int) -> int:
    """How many vectors an array of `count` held when it doubled last."""
    held = _ADDED if count > _ADDED else 0
    while 0 < 2 * held < count:
        held *= 2
    return held


def _sample_size(count: int, lists: int) -> int:
    return min(count, max(lists, _CODE_CENTERS) * _SAMPLE_PER_CENTER)


def _codes(width: int) -> int:
    """Codes of a product quantizer: one per four dimensions, as near as the width divides."""
    return next(codes for codes in range(max(width // 4, 1), 0, -1) if width % codes == 0)


_LISTS = ("IndexFlatIP", "ArrayInvertedLists")
_ROTATED = ("IndexPreTransform", "LinearTransform", "IndexIVFPQFastScan", "IndexFlatIP", "BlockInvertedLists")

HNSW = ApproximateKind(
    "hnsw",
    "HNSW32",
    classes=("IndexHNSWFlat", "IndexFlatIP"),
    rerank=1,
    vector_bytes=lambda width: 4 * width + 280,  # 64 + 3 links of 4 bytes
)
IVF = ApproximateKind(
    "ivf", "IVF{lists},Flat", classes=("IndexIVFFlat", *_LISTS), rerank=1, vector_bytes=lambda width: 4 * width + 8
)
IVF_SQ8 = ApproximateKind(
    "ivf_sq8", "IVF{lists},SQ8", classes=("IndexIVFScalarQuantizer", *_LISTS), rerank=4, vector_bytes=lambda width: width + 8
)
IVF_PQ = ApproximateKind(
    "ivf_pq",
    "OPQ{codes},IVF{lists},PQ{codes}x4fsr",
    classes=_ROTATED,
    rerank=10,
    vector_bytes=lambda width: _codes(width) // 2 + 8,
)
IVF_RABITQ = ApproximateKind(
    "ivf_rabitq",
    "IVF{lists},RaBitQ",
    classes=("IndexIVFRaBitQ", *_LISTS),
    rerank=20,
    vector_bytes=lambda width: width // 8 + 16,
)
