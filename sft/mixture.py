"""The training data of instruction tuning: tasks over documents as sources for `cm3.sequences`' loader, with shares.

    format ──► Documents ──► codes instead of pictures (once) ──► TaskSource (turns, masks, loss mask: fresh every epoch)

Pictures go through the image tokenizer once and are then kept as codes; what is random about a task (wording, question,
mask) is a pure function of (seed, task, epoch, document), so resuming needs no state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field

from cm3.core.errors import UsageError
from cm3.core.runfile import RunConfig
from cm3.core.seeding import numpy_generator
from cm3.documents.document import Document, ImageSegment, Segment, TextSegment
from cm3.sequences.sources import Mixture
from cm3.tokens.document_tokenizer import IMAGE_BATCH, DocumentTokenizer
from cm3.tokens.tokenized import TokenizedDocument
from sft.formats import read_format
from sft.tasks import make_task
from sft.tasks.task import Task, encode_example


class MixtureEntry(RunConfig):
    """One part of a mixture.

    task: a name of `sft.tasks.TASKS`; options: fields of that task; data: what to train on, of `format` (a name of
    `sft.formats.FORMATS`; None: the task's own); held_out: data to measure on, never trained; weight: share of the
    documents; loss_weight: what one trained token counts (text answers are short: more than 1 keeps them heard).
    """

    model_config = ConfigDict(allow_inf_nan=False)

    task: str
    data: Path
    options: dict[str, Any] = Field(default_factory=dict)
    format: str | None = None
    held_out: Path | None = None
    weight: float = Field(default=1.0, gt=0)
    loss_weight: float = Field(default=1.0, gt=0)

    def make_task(self) -> Task:
        """The task with its options. Raises `UsageError` for a name or an option that does not exist."""
        return make_task(self.task, self.options)


class TaskSource:
    """Documents as examples of one task: a `Source` of the loader.

    documents carry codes (see `encode_pictures`). An example that would be longer than `max_length` in some epoch is drawn
    as in epoch 0 instead; whether that fits, the loader checks beforehand.
    """

    def __init__(
        self,
        task: Task,
        documents: Sequence[Document],
        tokenizer: DocumentTokenizer,
        seed: int,
        max_length: int,
        loss_weight: float = 1.0,
    ) -> None:
        self.task, self.documents, self.tokenizer = task, documents, tokenizer
        self._seed, self._max_length, self._loss_weight = seed, max_length, loss_weight
        self._lengths = lru_cache(maxsize=2)(self._measure)

    def __len__(self) -> int:
        return len(self.documents)

    def lengths(self, epoch: int) -> np.ndarray:
        """(N,) int64: the tokens of every example in this epoch."""
        return self._lengths(epoch)

    def document(self, index: int, epoch: int) -> TokenizedDocument:
        """Example `index` as it is in this epoch."""
        example = self._example(index, epoch)
        if epoch > 0 and len(example) > self._max_length:
            example = self._example(index, 0)
        if self._loss_weight == 1.0:
            return example
        return replace(example, loss_weights=example.loss_weights * np.float32(self._loss_weight))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the ids and texts of the documents and the lengths of their examples.

        Pictures count by their documents: their codes may differ in a few places from one device to another.
        """
        digest = hashlib.sha256(self.lengths(0).astype(np.int64).tobytes())
        for document in self.documents:
            texts = [segment.text for segment in document.segments if isinstance(segment, TextSegment)]
            digest.update(json.dumps([document.id, *texts]).encode())
        return digest.hexdigest()

    def _example(self, index: int, epoch: int) -> TokenizedDocument:
        rng = numpy_generator(self._seed, type(self.task).__name__, epoch, index)
        return encode_example(self.task, self.documents[index], self.tokenizer, rng)

    def _measure(self, epoch: int) -> np.ndarray:
        return np.array([len(self.document(index, epoch)) for index in range(len(self))], np.int64)


def make_mixture(entries: Sequence[MixtureEntry], tokenizer: DocumentTokenizer, seed: int, max_length: int) -> Mixture:
    """Read, encode and weight all entries. A data set that several entries name is read and encoded once.

    Raises `UsageError` for an empty mixture or an unknown task, `InputError` and `BudgetError` for data that cannot be used.
    """
    if not entries:
        raise UsageError("the mixture is empty; add an entry with 'task' and 'data'")
    documents: dict[tuple[Path, str], list[Document]] = {}
    parts = []
    for entry in entries:
        task = entry.make_task()
        key = (entry.data, entry.format or task.data_format)
        if key not in documents:
            documents[key] = list(encode_pictures(read_format(*key), tokenizer))
        source = TaskSource(task, documents[key], tokenizer, seed, max_length, entry.loss_weight)
        parts.append((source, entry.weight))
    return Mixture(parts)


def held_out_examples(
    entries: Sequence[MixtureEntry], tokenizer: DocumentTokenizer, seed: int, limit: int
) -> list[TokenizedDocument]:
    """At most `limit` examples of every entry's held-out data, drawn the same way each time."""
    examples: list[TokenizedDocument] = []
    for entry in entries:
        if entry.held_out is None:
            continue
        task = entry.make_task()
        found = islice(read_format(entry.held_out, entry.format or task.data_format), limit)
        source = TaskSource(task, list(encode_pictures(found, tokenizer)), tokenizer, seed, max_length=0)
        examples += [source.document(index, 0) for index in range(len(source))]
    return examples


def encode_pictures(documents: Iterable[Document], tokenizer: DocumentTokenizer) -> Iterator[Document]:
    """The documents with every picture replaced by its codes, in batches through the image tokenizer.

    The mask of an edit is left out: no task learns to make it. Raises `InputError` for a picture that cannot be used,
    `UsageError` without an image tokenizer.
    """
    stream = (_without_mask(document) for document in documents)
    while batch := list(islice(stream, IMAGE_BATCH)):
        pictures = [picture for document in batch for picture in document.images]
        encoded = tokenizer.encode_segments(pictures)
        codes = iter(tokenizer.vocab.codes(ids).reshape(tokenizer.vocab.grid_shape) for _, ids in encoded)
        for document in batch:
            segments: list[Segment] = [
                ImageSegment(codes=_compact(next(codes))) if isinstance(segment, ImageSegment) else segment
                for segment in document.segments
            ]
            yield replace(document, segments=tuple(segments))


def _without_mask(document: Document) -> Document:
    roles = iter(document.meta.get("images", ()))
    kept = [s for s in document.segments if not (isinstance(s, ImageSegment) and next(roles, None) == "mask")]
    return replace(document, segments=tuple(kept)) if len(kept) < len(document.segments) else document


def _compact(codes: np.ndarray) -> np.ndarray:
    """Codes (h, w) in the smallest integer type: a training set holds millions of them."""
    return codes.astype(np.min_scalar_type(int(codes.max())))
