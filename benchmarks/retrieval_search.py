"""Searching: our exact search beside faiss's IndexFlatIP, and our layer over approximate faiss indexes beside faiss itself.

Unit vectors of width 512, processor time of one thread; the rows that say "all threads" are wall time, since faiss searches one
query on one thread whatever it is given. The gate asks for the same ids in the same order.
`CM3_BENCH_SIZES=50000,500000` sets the sizes of the exact search, `CM3_BENCH_CHOICES=10000,200000` those at which a graph and
lists, tuned to a recall of 0.97, stand beside the exact search (`peer`): where a size stops being one for `flat`.

Where there is a GPU, the exact search there stands beside the most that the GPU can do, measured in the same run (`peer`, and
`limit_fraction`): one query beside reading the vectors at copy bandwidth, 256 beside their products at the rate of a large one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import faiss
import numpy as np
import torch

from benchmarks.measure import Row, interleaved, report, time_row
from retrieval.index import INDEXES, VectorIndex
from retrieval.index.flat import FlatIndex
from retrieval.index.recall import recall_shares

WIDTH, K = 512, 10
EXACT_SIZES = tuple(int(size) for size in os.environ.get("CM3_BENCH_SIZES", "50000").split(","))
CHOICE_SIZES = tuple(int(size) for size in os.environ.get("CM3_BENCH_CHOICES", "10000").split(","))
LAYERED_SIZE = 50_000
TARGET = 0.97
LAYERED = ("hnsw", "ivf")  # kinds whose candidates faiss itself scores exactly
GPU_SHAPE = (1_000_000, 768)
SQUARE = 8192  # rows and columns of the product that sets the rate


def unit_vectors(count: int, seed: int, width: int = WIDTH) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(count: int, seed: int) -> np.ndarray:
    """Unit vectors around 200 centers: an index has something to find, as it has in embeddings."""
    rng = np.random.default_rng(seed)
    vectors = unit_vectors(200, seed)[rng.integers(200, size=count)] + 0.7 * unit_vectors(count, seed + 1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered_queries(count: int) -> np.ndarray:
    """Unit vectors (count, WIDTH) near vectors of `clustered(…, 0)`, but none of them."""
    queries = clustered(count, 0) * 0.8 + 0.2 * unit_vectors(count, 9)
    return (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


def apart(index: VectorIndex, queries: np.ndarray) -> None:
    for query in queries:
        index.search(query[None], K)


def use_threads(count: int) -> None:
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)


def exact(count: int) -> Iterator[Row]:
    vectors = unit_vectors(count, 0)
    ours, peer = FlatIndex(vectors), faiss.IndexFlatIP(WIDTH)
    peer.add(vectors)
    for batch in (64, 1):
        queries = unit_vectors(batch, 7)
        same = "ok" if (ours.search(queries, K)[1] == peer.search(queries, K)[1]).all() else "other ids"
        repeats = 21 if count * batch < 10_000_000 else 3
        actions = partial(ours.search, queries, K), partial(peer.search, queries, K)
        name = f"exact, {count:,} × {WIDTH}, {batch} quer{'y' if batch == 1 else 'ies'}, vs IndexFlatIP"
        yield time_row(name, interleaved(*actions, repeats, time.process_time), same)
        use_threads(len(os.sched_getaffinity(0)))
        yield time_row(f"{name}, all threads", interleaved(*actions, repeats), same)
        use_threads(1)


def layered(kind: str) -> Row:
    vectors = clustered(LAYERED_SIZE, 0)
    queries = clustered_queries(64)
    index = INDEXES.get(kind).build(vectors, 0)
    index.tune(queries, TARGET)
    raw, parameters = index.index, None  # type: ignore[attr-defined]
    if kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(efSearch=index.breadth)  # type: ignore[attr-defined]
    one = [query[None] for query in queries]
    ours = [index.search(query, K)[1] for query in one]
    peer = [raw.search(query, K, params=parameters)[1] for query in one]
    shared = np.mean([np.isin(want, got).mean() for want, got in zip(peer, ours, strict=True)])
    seconds = interleaved(
        lambda: [index.search(query, K) for query in one],
        lambda: [raw.search(query, K, params=parameters) for query in one],
        clock=time.process_time,
    )
    per_query = seconds[0] / len(one), seconds[1] / len(one)
    gate = "ok" if shared == 1 else f"{shared:.2%} of the ids are the same"
    return time_row(f"{kind}, {LAYERED_SIZE:,} × {WIDTH}, one query, vs faiss alone", per_query, gate)


def choice(count: int) -> Iterator[Row]:
    vectors, queries = clustered(count, 0), clustered_queries(320)
    exact, asked = FlatIndex(vectors), queries[:64]
    expected = exact.search(asked, K)
    for kind in LAYERED:
        started = time.process_time()
        index = INDEXES.get(kind).build(vectors, 0)
        index.tune(queries[64:], TARGET)
        seconds = time.process_time() - started
        recall = float(recall_shares(expected, index.search(asked, K)).mean())
        gate = "ok" if recall >= 0.95 else f"recall {recall:.3f} is below 0.95"
        name = f"{kind}, recall {recall:.3f}, {count:,} × {WIDTH}"
        single = interleaved(partial(apart, index, asked[:16]), partial(apart, exact, asked[:16]), 5, time.process_time)
        yield time_row(f"{name}, one query, vs exact", (single[0] / 16, single[1] / 16), gate)
        together = interleaved(partial(index.search, asked, K), partial(exact.search, asked, K), 5, time.process_time)
        yield time_row(f"{name}, 64 queries, vs exact", together, gate)
        yield time_row(f"{kind}, {count:,} × {WIDTH}, build and tune", (seconds, seconds), gate)


def on_gpu() -> Iterator[Row]:
    """Float32 throughout, as the index keeps its copy. A search returns on the CPU, and so has waited for the GPU."""
    count, width = GPU_SHAPE
    vectors = unit_vectors(count, 0, width)
    ours, reference = FlatIndex(vectors, "cuda"), FlatIndex(vectors)
    source, square = torch.from_numpy(vectors).cuda(), torch.randn(SQUARE, SQUARE, device="cuda")
    target, product = torch.empty_like(source), torch.empty_like(square)
    limits = {  # a copy reads and writes
        1: ("copy bandwidth", partial(target.copy_, source), 0.5),
        256: ("the rate of a large product", partial(torch.mm, square, square, out=product), 256 * count * width / SQUARE**3),
    }
    for batch, (what, peer, share) in limits.items():
        queries = unit_vectors(batch, 7, width)
        same = "ok" if (ours.search(queries, K)[1] == reference.search(queries, K)[1]).all() else "other ids"
        seconds, whole = interleaved(partial(ours.search, queries, K), partial(waited_for, peer), 21)
        least = share * whole
        name = f"exact on the GPU, {count:,} × {width}, {batch} quer{'y' if batch == 1 else 'ies'}, vs {what}"
        yield time_row(name, (seconds, least), same, round(least / seconds, 3))


def waited_for(work: Callable[[], object]) -> None:
    work()
    torch.cuda.synchronize()


def rows() -> Iterator[Row]:
    use_threads(1)
    for kind in LAYERED:
        yield layered(kind)
    for count in EXACT_SIZES:
        yield from exact(count)
    for count in CHOICE_SIZES:
        yield from choice(count)
    if torch.cuda.is_available():
        yield from on_gpu()


if __name__ == "__main__":
    report(rows, __doc__ or "")
