"""Retrieval: documents to their neighbor documents. Encoders (CLIP), exact and approximate indexes, memory banks.

    memory = retrieval.open("my-memory")
    for neighbor in memory.search(text="a red circle", k=4): print(neighbor.score, neighbor.document.text)

Useful alone: `build` turns a folder of pictures and texts into a memory bank that needs no other part of the project
to be searched. Importing this package is cheap; the heavy parts load when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.bank import MemoryBank, open_bank
    from retrieval.building import add, build, import_clip_retrieval, merge, remove
    from retrieval.checking import check_bank
    from retrieval.clip_retrieval import write_clip_retrieval
    from retrieval.config import BuildConfig, RetrieverConfig, TrainEncoderConfig
    from retrieval.encoders import load_encoder
    from retrieval.evaluation import evaluate
    from retrieval.neighbor_table import write_neighbors
    from retrieval.rerank import CLIPReranker
    from retrieval.retriever import NeighborFinder
    from retrieval.scaling import build_shards
    from retrieval.sharded import ShardedBank, open_banks
    from retrieval.training import train_encoder

    open = open_bank

_LAZY = {
    "BuildConfig": "retrieval.config:BuildConfig",
    "CLIPReranker": "retrieval.rerank:CLIPReranker",
    "MemoryBank": "retrieval.bank:MemoryBank",
    "NeighborFinder": "retrieval.retriever:NeighborFinder",
    "RetrieverConfig": "retrieval.config:RetrieverConfig",
    "ShardedBank": "retrieval.sharded:ShardedBank",
    "TrainEncoderConfig": "retrieval.config:TrainEncoderConfig",
    "add": "retrieval.building:add",
    "build": "retrieval.building:build",
    "build_shards": "retrieval.scaling:build_shards",
    "check_bank": "retrieval.checking:check_bank",
    "evaluate": "retrieval.evaluation:evaluate",
    "import_clip_retrieval": "retrieval.building:import_clip_retrieval",
    "load_encoder": "retrieval.encoders:load_encoder",
    "merge": "retrieval.building:merge",
    "open": "retrieval.bank:open_bank",
    "open_banks": "retrieval.sharded:open_banks",
    "remove": "retrieval.building:remove",
    "train_encoder": "retrieval.training:train_encoder",
    "write_clip_retrieval": "retrieval.clip_retrieval:write_clip_retrieval",
    "write_neighbors": "retrieval.neighbor_table:write_neighbors",
}

__all__ = [
    "BuildConfig",
    "CLIPReranker",
    "MemoryBank",
    "NeighborFinder",
    "RetrieverConfig",
    "ShardedBank",
    "TrainEncoderConfig",
    "add",
    "build",
    "build_shards",
    "check_bank",
    "evaluate",
    "import_clip_retrieval",
    "load_encoder",
    "merge",
    "open",
    "open_banks",
    "remove",
    "train_encoder",
    "write_clip_retrieval",
    "write_neighbors",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
