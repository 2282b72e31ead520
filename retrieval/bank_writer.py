"""Writing the parts of a memory bank into a folder: documents and vectors side by side, then index, recall and description.

Documents come in encoded (`add`) or are taken over from another bank with their vectors (`take_over`); nothing is held in
memory but ids and, while it is built, the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cm3.core.artefact import write_json
from cm3.core.errors import ArtefactError, InputError
from cm3.core.seeding import numpy_generator
from cm3.documents.document import Document
from retrieval.bank import BANK_FILE, BankInfo, MemoryBank
from retrieval.config import BuildConfig
from retrieval.embedding import embed_documents
from retrieval.encoders import Encoder
from retrieval.index import INDEXES, VectorIndex, choose_index
from retrieval.index.flat import FlatIndex
from retrieval.store import DocumentWriter
from retrieval.vectors import VectorWriter, load_vectors

_RECALL_QUERIES = 500
_RECALL_AT = 10
_BLOCK = 4096


class BankWriter:
    """Fills `folder` with one bank; `close` it whatever happens (`contextlib.closing`), and `finish` it when it is whole."""

    def __init__(self, folder: Path, encoder: Encoder, config: BuildConfig) -> None:
        self.folder, self.encoder, self.config = folder, encoder, config
        self._documents = DocumentWriter(folder, config.max_image_side)
        self._vectors = VectorWriter(folder, encoder.width)

    def add(self, documents: Sequence[Document]) -> None:
        """Encode and append `documents`. Raises `InputError` for a double id or a document that cannot be encoded or stored."""
        self._vectors.add(embed_documents(documents, self.encoder))
        for document in documents:
            self._documents.add(document)

    def take_over(self, bank: MemoryBank, rows: np.ndarray) -> None:
        """Append the documents in `rows` of `bank`, which has the same encoder, with their stored vectors and pictures."""
        bank.check_encoder(self.encoder)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            self._vectors.add(bank.vectors[block])
            for row in block.tolist():
                self._documents.take_over(bank.store, row)

    def finish(self) -> BankInfo:
        """Build the index, measure it, and describe the bank.

        Raises `InputError` when nothing was added, `ArtefactError` for an index below `config.min_recall`.
        """
        if self._vectors.count == 0:
            raise InputError("there are no documents to remember; give at least one")
        self._documents.finish()
        self._vectors.finish()
        vectors = load_vectors(self.folder, (self._vectors.count, self._vectors.width))
        kind = choose_index(len(vectors)) if self.config.index == "auto" else self.config.index
        index: VectorIndex = INDEXES.get(kind).build(vectors, self.config.seed)
        index.save(self.folder)
        recall = measure_recall(index, vectors, self.config.seed)
        if recall["value"] < self.config.min_recall:
            raise ArtefactError(
                f"the {kind} index finds {recall['value']:.1%} of what an exact search finds, below the floor of "
                f"{self.config.min_recall:.1%}, and was not published; take another index, or lower min_recall"
            )
        info = BankInfo(
            count=len(vectors),
            width=vectors.shape[1],
            encoder=self.encoder.fingerprint,
            encoder_kind=self.encoder.kind,
            index=index.describe(),
            recall=recall,
        )
        write_json(self.folder / BANK_FILE, info.model_dump(mode="json"))
        return info

    def close(self) -> None:
        """Close the open files."""
        self._documents.close()
        self._vectors.close()


def measure_recall(index: VectorIndex, vectors: np.ndarray, seed: int) -> dict[str, float | int]:
    """Share of the exact 10 nearest that `index` finds, over 500 queries that are in no bank: mixtures of two documents.

    "value", the 95 % interval "low" to "high" (normal, over queries), "queries" and "at". An exact index is not measured.
    """
    if isinstance(index, FlatIndex):
        return {"value": 1.0, "low": 1.0, "high": 1.0, "queries": 0, "at": _RECALL_AT}
    rng, k = numpy_generator(seed, "recall"), min(_RECALL_AT, len(vectors))
    first, second = rng.integers(len(vectors), size=(2, _RECALL_QUERIES))
    queries = vectors[first] + 0.5 * vectors[second]
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    _, expected = FlatIndex(vectors).search(queries, k)
    _, found = index.search(queries, k)
    shares = np.array([np.isin(want, got).mean() for want, got in zip(expected, found, strict=True)])
    margin = 1.96 * float(shares.std(ddof=1)) / len(shares) ** 0.5
    value = float(shares.mean())
    return {"value": value, "low": max(0.0, value - margin), "high": min(1.0, value + margin), "queries": len(shares), "at": k}
