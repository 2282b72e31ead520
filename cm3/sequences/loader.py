"""`SequenceLoader`: the training batch of a step, as a pure function of (seed, step).

documents (list, shards, mixture) → plan of rows → objective on each document → packed `Batch`. There is no iterator
whose state must be saved: resuming at step s asks for batch(s). Several processes or micro-steps are shards of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from cm3.core.errors import InputError
from cm3.core.runfile import RunConfig
from cm3.core.seeding import numpy_generator
from cm3.sequences.batch import Batch, collate
from cm3.sequences.masking import TOKENS_PER_SPAN
from cm3.sequences.objectives import OBJECTIVES, ObjectiveConfig
from cm3.sequences.ordering import image_first
from cm3.sequences.packing import pack
from cm3.sequences.plan import Entry, RowPlan
from cm3.sequences.sources import Mixture, Source
from cm3.tokens import TokenizedDocument, Vocab


class LoaderConfig(RunConfig):
    """The shape of a batch and the objective behind it.

    row_length: tokens per row; batch_size: rows per batch (per process and micro-step); window: documents packed
    together; overlong: what to do with documents longer than a row, "refuse" or "skip" (counted, never cut).
    """

    row_length: int = Field(default=1024, ge=8)
    batch_size: int = Field(default=8, ge=1)
    window: int = Field(default=2048, ge=1)
    overlong: Literal["refuse", "skip"] = "refuse"
    objective: ObjectiveConfig = ObjectiveConfig()


class SequenceLoader:
    """Batches by step over `documents`: a list or source of tokenized documents, or a `Mixture` of several.

    skipped: how many documents do not fit a row and were left out (`overlong="skip"`); otherwise such documents raise
    `InputError` here.
    """

    def __init__(
        self, documents: Mixture | Source | Sequence[TokenizedDocument], vocab: Vocab, config: LoaderConfig, seed: int
    ) -> None:
        mixture = documents if isinstance(documents, Mixture) else Mixture([(documents, 1.0)])
        self.vocab, self.config, self.seed = vocab, config, seed
        self.plan = RowPlan(mixture, config.objective, config.row_length, config.window, seed)
        self.skipped = sum(stream.skipped for stream in self.plan.streams)
        if self.skipped and config.overlong == "refuse":
            longest = max(int(part.source.lengths(0).max()) for part in mixture.parts)
            raise InputError(
                f"{self.skipped} documents are longer than row_length={config.row_length} (the longest has {longest} tokens); "
                "use longer rows, or overlong='skip' to leave them out"
            )

    def batch(self, step: int, shard_index: int = 0, shard_count: int = 1) -> Batch:
        """The rows of `step` ≥ 0 that belong to shard `shard_index` of `shard_count`: (batch_size, row_length)."""
        rows = [self.documents(number) for number in self._rows(step, shard_index, shard_count)]
        return collate(rows, self.config.row_length, self.vocab.pad_id)

    def document_names(self, step: int, shard_index: int = 0, shard_count: int = 1) -> list[list[str]]:
        """Ids of the documents in every row of `batch(step, shard_index, shard_count)`."""
        rows = [self.plan.row(number) for number in self._rows(step, shard_index, shard_count)]
        return [[self._document(entry).id for entry in row] for row in rows]

    def position(self, step: int, shard_count: int = 1) -> dict[str, float]:
        """Where the data stands before `step`: "documents" seen, and "epoch" (of the source that is farthest, in a mixture)."""
        documents, epochs = self.plan.position(step * shard_count * self.config.batch_size)
        return {"documents": float(documents), "epoch": max(epochs)}

    def documents(self, row: int) -> list[TokenizedDocument]:
        """The training sequences of one row, the objective applied."""
        rng = numpy_generator(self.seed, "objective", row)
        return [self._sequence(entry, rng) for entry in self.plan.row(row)]

    def _sequence(self, entry: Entry, rng: np.random.Generator) -> TokenizedDocument:
        stream = self.plan.streams[entry.part]
        document = image_first(self._document(entry), self.vocab, rng, stream.config.image_first_prob)
        return stream.objective(document, self.vocab, rng, stream.config, entry.count)

    def _document(self, entry: Entry) -> TokenizedDocument:
        return self.plan.streams[entry.part].source.document(entry.index, entry.epoch)

    def _rows(self, step: int, shard_index: int, shard_count: int) -> range:
        """The numbers of the rows of a batch."""
        first = (step * shard_count + shard_index) * self.config.batch_size
        return range(first, first + self.config.batch_size)


def one_pass(documents: Sequence[TokenizedDocument], vocab: Vocab, config: LoaderConfig, seed: int = 0) -> Iterator[Batch]:
    """Every document once, in packed batches, for evaluation; the last batch is filled with empty rows.

    The objective of `config` is applied ("causal" leaves the documents as they are). Raises `UsageError` for a document
    that does not fit a row.
    """
    objective = OBJECTIVES.get(config.objective.name)
    rows: list[list[TokenizedDocument]] = []
    for start in range(0, len(documents), config.window):
        window = []
        for index in range(start, min(start + config.window, len(documents))):
            rng = numpy_generator(seed, "evaluation", index)
            room = max(0, (config.row_length - len(documents[index])) // TOKENS_PER_SPAN)
            count = min(int(objective.counts(1, rng, config.objective)[0]), room)
            window.append(objective(documents[index], vocab, rng, config.objective, count))
        packed = pack(np.array([len(document) for document in window]), config.row_length)
        rows += [[window[item] for item in row] for row in packed]
        while len(rows) >= config.batch_size:
            yield collate(rows[: config.batch_size], config.row_length, vocab.pad_id)
            rows = rows[config.batch_size :]
    if rows:
        rows += [[] for _ in range(config.batch_size - len(rows))]
        yield collate(rows, config.row_length, vocab.pad_id)
