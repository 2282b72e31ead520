"""Where training documents come from: a list, token shards, or anything with lengths; and weighted mixtures of them.

A source is endless for the loader: the documents of epoch 0 in a seeded order, then those of epoch 1 in another, and so
on. Position p of that stream is a function of (seed, p), so no reader has a state that could be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cm3.core.errors import InputError, UsageError
from cm3.sequences.objectives import ObjectiveConfig
from cm3.tokens import TokenizedDocument


class Source(Protocol):
    """Documents by index, which may differ from epoch to epoch (other neighbors, another masked box)."""

    def __len__(self) -> int: ...

    def lengths(self, epoch: int) -> np.ndarray:
        """(N,) int64: how many tokens each document has in this epoch, at most."""

    def document(self, index: int, epoch: int) -> TokenizedDocument:
        """Document `index` in [0, N) as it is in this epoch."""


class ListSource:
    """The same documents in every epoch, from memory."""

    def __init__(self, documents: Sequence[TokenizedDocument]) -> None:
        self._documents = documents
        self._lengths = np.array([len(document) for document in documents], np.int64)

    def __len__(self) -> int:
        return len(self._documents)

    def lengths(self, epoch: int) -> np.ndarray:
        """(N,) int64."""
        return self._lengths

    def document(self, index: int, epoch: int) -> TokenizedDocument:
        """Document `index`."""
        return self._documents[index]


@dataclass(frozen=True)
class Part:
    """One source of a mixture: `weight` is its share of the documents; `objective` None takes the loader's."""

    source: Source
    weight: float
    objective: ObjectiveConfig | None = None


class Mixture:
    """Several sources, each with its share of the documents: `Mixture([(source, 3.0), (other, 1.0)])`.

    An entry is (source, weight) or (source, weight, objective); a source may be a plain list of documents. Raises
    `UsageError` for a weight that is not positive, `InputError` for a source without documents.
    """

    def __init__(self, parts: Sequence[tuple]) -> None:
        if not parts:
            raise UsageError("a mixture needs at least one source")
        self.parts = [Part(as_source(source), float(weight), *rest) for source, weight, *rest in parts]
        for index, part in enumerate(self.parts):
            if not part.weight > 0:
                raise UsageError(f"source {index} of the mixture has weight {part.weight}; weights must be positive")
            if len(part.source) == 0:
                raise InputError(f"source {index} of the mixture holds no document; check what was read or tokenized")
        total = sum(part.weight for part in self.parts)
        self._shares = np.array([part.weight / total for part in self.parts])
        self._rest = int(self._shares.argmax())

    def taken(self, count: int) -> np.ndarray:
        """(S,) int64: how many of the first `count` documents come from each source. Never falls as `count` grows by ≥ S²."""
        taken = np.floor(self._shares * count + 1e-9).astype(np.int64)
        taken[self._rest] += count - taken.sum()
        return taken


def as_source(documents: Source | Sequence[TokenizedDocument]) -> Source:
    """A source as it is, a list or shards wrapped as one."""
    return documents if hasattr(documents, "document") else ListSource(documents)  # type: ignore[return-value, arg-type]
