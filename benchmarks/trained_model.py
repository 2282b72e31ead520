"""A trained model for benchmarks whose figures mean nothing on random weights: the quickstart's, from `CM3_BENCH_MODEL`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cm3.documents.document import Document
from cm3.pipeline import CM3Pipeline
from cm3.scenes.dataset import pair_document
from cm3.scenes.world import WorldConfig


def trained_pipeline() -> CM3Pipeline | None:
    """The model folder that `CM3_BENCH_MODEL` names (quickstart/model by default); None, said on stderr, without one."""
    folder = Path(os.environ.get("CM3_BENCH_MODEL", "quickstart/model"))
    if not folder.is_dir():
        print(f"no model at {folder}: run `cm3 quickstart`, or set CM3_BENCH_MODEL", file=sys.stderr)
        return None
    return CM3Pipeline.from_pretrained(folder)


def held_out_pairs(count: int) -> list[Document]:
    """Pairs of the embedded world in combinations that its training pictures do not have."""
    return [pair_document(WorldConfig(), "test", 0, number) for number in range(count)]
