"""The neighbors of a whole training set, found once and kept: what pretraining with retrieval reads.

    bank, documents → OUT/table.npy (N, k) int64: rows of the bank, best first, -1 for none
                      OUT/neighbors.jsonl: {"id", "neighbors": [ids]} per document, for people and other programs

Row i of the table belongs to the i-th document. When the bank holds the same documents in the same order as the token
shards (both made of one source), its rows are the numbers of the shards' documents. The manifest keeps a digest of the ids of
both ("documents", "neighbors"; see `order_digest`), so that training can refuse a table of others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cm3.core.artefact import fingerprint, writing
from cm3.core.errors import InputError
from cm3.core.progress import Progress, progress
from cm3.documents.document import Document
from cm3.documents.order import order_digest
from cm3.documents.readers import read_documents
from cm3.documents.report import ReadReport
from retrieval.bank import MemoryBank
from retrieval.config import RetrieverConfig
from retrieval.retriever import NO_NEIGHBOR, NeighborFinder

KIND = "neighbors"
TABLE, BY_ID = "table.npy", "neighbors.jsonl"


@dataclass(frozen=True)
class NeighborTable:
    """What `write_neighbors` made. complete: the share of documents that have all k neighbors."""

    path: Path
    count: int
    complete: float


def write_neighbors(
    bank: MemoryBank,
    source: Path | str | Iterable[Document],
    out: Path | str,
    k: int,
    config: RetrieverConfig | None = None,
    report: ReadReport | None = None,
) -> NeighborTable:
    """Find up to `k` neighbors of every document of `source` in `bank` and write the table `out`.

    Raises `InputError` for no documents, `BudgetError` when too much was rejected, and what `NeighborFinder.neighbors` and
    `writing` raise.
    """
    config, report, ids = config or RetrieverConfig(), report or ReadReport(), list[str]()
    documents = read_documents(source, report=report) if isinstance(source, str | Path) else source
    provenance: dict[str, Any] = {"memory": fingerprint(bank.folder), "neighbors": order_digest(bank.ids)}
    provenance |= {"k": k, "retriever": config.model_dump(mode="json")}
    with writing(out, KIND, provenance) as folder:
        with progress(len(bank), "neighbors", unit="document") as bar:
            table = NeighborFinder(bank, config).table(_counted(documents, ids, bar), k)
        report.check()
        if not ids:
            raise InputError("there are no documents to find neighbors of; give at least one")
        provenance["documents"] = order_digest(ids)  # known only now; the manifest is written at the end of the block
        np.save(folder / TABLE, table)
        names = np.array([*bank.ids, None], object)  # the last for NO_NEIGHBOR, which is -1
        with open(folder / BY_ID, "w", encoding="utf-8") as lines:
            for id, rows in zip(ids, table, strict=True):
                record = {"id": id, "neighbors": names[rows[rows != NO_NEIGHBOR]].tolist()}
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    return NeighborTable(Path(out), len(table), float((table != NO_NEIGHBOR).all(axis=1).mean()))


def _counted(documents: Iterable[Document], ids: list[str], bar: Progress) -> Iterator[Document]:
    for document in documents:
        ids.append(document.id)
        yield document
        bar.advance()
