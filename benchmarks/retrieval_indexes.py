"""Every kind of index on the embeddings of real documents: how much it finds, how long it takes, what it weighs.

The documents are those of `CM3_BENCH_DATA` (a source for `read_documents`; by default pairs of the embedded world), the encoder
is that of `CM3_BENCH_ENCODER`, or a small one trained on them here. Queries are texts alone and pictures alone. `ours`: the kind,
`peer` the exact search; for bytes and recall the ratio says how many times smaller, and what share is found. With
`CM3_BENCH_PLOT=FILE.svg` a plot of recall against time is written.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import torch

import retrieval
from benchmarks.measure import Row, interleaved, report, time_row
from cm3.documents.document import Document
from cm3.documents.readers import read_documents
from cm3.documents.report import ReadReport
from cm3.scenes.dataset import pair_document
from cm3.scenes.world import WorldConfig
from retrieval.config import BuildConfig, TrainEncoderConfig
from retrieval.index import INDEXES
from retrieval.index.flat import FlatIndex
from retrieval.index.recall import recall_shares
from retrieval.indexing import held_out_queries

K, QUERIES, TARGET = 10, 500, 0.97
STEPS = int(os.environ.get("CM3_BENCH_STEPS", "60"))
COUNT = int(os.environ.get("CM3_BENCH_COUNT", "3000"))


def documents() -> list[Document]:
    source = os.environ.get("CM3_BENCH_DATA")
    if source is None:
        return [pair_document(WorldConfig(), "train", 0, number) for number in range(COUNT)]
    return list(read_documents(source, report=ReadReport()))[:COUNT]


def bank(folder: Path) -> retrieval.MemoryBank:
    given = os.environ.get("CM3_BENCH_ENCODER")
    found = documents()
    encoder = Path(given) if given else folder / "encoder"
    if given is None:
        config = TrainEncoderConfig.model_validate({"train": {"steps": STEPS, "learning_rate": 4e-3, "checkpoint_every": 0}})
        retrieval.train_encoder(found, encoder, config)
    retrieval.build(found, folder / "bank", encoder, BuildConfig())
    return retrieval.open(folder / "bank")


def kind_rows(kind: str, vectors: np.ndarray, queries: np.ndarray, exact: FlatIndex, folder: Path) -> Iterator[Row]:
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew (Linux)
    before, started = resident("VmRSS"), time.process_time()
    index = INDEXES.get(kind).build(vectors, 0)
    index.tune(queries[QUERIES:], TARGET)
    peak = max(resident("VmHWM") - before, 0.1)
    build_seconds = time.process_time() - started
    asked = queries[:QUERIES]
    recall = float(recall_shares(exact.search(asked, K), index.search(asked, K)).mean())
    gate = "ok" if recall >= 0.95 else f"recall {recall:.3f} is below 0.95"
    one = [query[None] for query in asked[:100]]
    seconds = interleaved(
        lambda: [index.search(query, K) for query in one], lambda: [exact.search(query, K) for query in one], 3, time.process_time
    )
    (folder / kind).mkdir()
    index.save(folder / kind)
    size = sum(file.stat().st_size for file in (folder / kind).iterdir()) / len(vectors) or 4.0 * vectors.shape[1]
    flat_size = 4.0 * vectors.shape[1]
    yield time_row(f"{kind}: one query", (seconds[0] / len(one), seconds[1] / len(one)), gate)
    yield row(f"{kind}: recall@{K}", recall, 1.0, recall, "share", gate)
    yield row(f"{kind}: bytes per vector", size, flat_size, flat_size / size, "bytes", gate)
    yield row(f"{kind}: build and tune", build_seconds, build_seconds, 1.0, "s", gate)
    estimate = INDEXES.get(kind).footprint(*vectors.shape).build / 2**20
    yield row(f"{kind}: peak memory of building, beside its estimate", peak, estimate, estimate / peak, "MiB", gate)


def resident(name: str) -> float:
    """Resident memory of this process in MiB: now (VmRSS), or at most since the mark was reset (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def row(name: str, ours: float, peer: float, ratio: float, unit: str, gate: str) -> Row:
    figures = [round(figure, 4) for figure in (ours, peer, ratio)]
    return Row(row=name, ours=figures[0], peer=figures[1], ratio=figures[2], unit=unit, limit_fraction=None, gate=gate)


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    points: dict[str, tuple[float, float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        memory = bank(Path(name))
        vectors = np.ascontiguousarray(memory.vectors)
        queries = held_out_queries(memory.store, vectors, memory.encoder, QUERIES + 256)
        exact = FlatIndex(vectors)
        for kind in INDEXES.names():
            figures = list(kind_rows(kind, vectors, queries, exact, Path(name)))
            points[kind] = figures[0]["ours"], figures[1]["ours"], figures[2]["ours"]
            yield from figures
        memory.close()
    if plot := os.environ.get("CM3_BENCH_PLOT"):
        Path(plot).write_text(drawing(points, len(vectors), vectors.shape[1]), "utf-8")


def drawing(points: dict[str, tuple[float, float, float]], count: int, width: int) -> str:
    """An SVG: recall@10 upward, milliseconds of one query to the right (logarithmic), area of a dot by bytes per vector."""
    times = np.log10([point[0] for point in points.values()])
    low, high = float(times.min()) - 0.2, float(times.max()) + 0.35
    marks = []
    ordered = sorted(points.items(), key=lambda point: point[1])
    following = [recall for _, (_, recall, _) in ordered[1:]] + [2.0]
    for (kind, (milliseconds, recall, size)), after in zip(ordered, following):
        x = 60 + 520 * (np.log10(milliseconds) - low) / (high - low)
        y = 340 - 300 * (recall - 0.9) / 0.1
        marks.append(f'<circle cx="{x:.0f}" cy="{y:.0f}" r="{2 + size**0.5 / 4:.1f}" fill="#4477aa" fill-opacity="0.6"/>')
        beside = y - 10 if recall > after - 0.001 else y + 16  # away from the next dot and its label
        marks.append(f'<text x="{x + 10:.0f}" y="{beside:.0f}">{kind}: {milliseconds:.2f} ms, {size:.0f} B</text>')
    levels = (0.9, 0.92, 0.94, 0.96, 0.98, 1.0)
    ticks = [f'<text x="20" y="{344 - 3000 * (level - 0.9):.0f}">{level:.2f}</text>' for level in levels]
    title = f"recall@10 by time of one query (one thread), {count:,} documents × {width}; dots by bytes per vector"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 380" font-family="sans-serif" font-size="11">'
        f'<rect width="640" height="380" fill="white"/><text x="60" y="20">{title}</text>'
        f'<path d="M60 30V345H600" fill="none" stroke="black"/>{"".join(ticks + marks)}</svg>\n'
    )


if __name__ == "__main__":
    report(rows, __doc__ or "")
