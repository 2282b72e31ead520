"""Training pictures: read once through the readers, fitted to size, kept as uint8 in memory or in a file of raw pixels.

Every image segment of every document is one picture. Decoding and resizing happen once; a batch is then an index
operation. Above `memory_limit_gib` the pixels go to a scratch file that is mapped instead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cm3.core.artefact import storage_errors
from cm3.core.errors import InputError
from cm3.core.seeding import derive_seed, numpy_generator
from cm3.documents.document import Document
from cm3.documents.readers import read_documents
from cm3.documents.report import ReadReport
from vqgan.config import VQConfig, VQTrainConfig
from vqgan.preprocessing import fit_image, image_array


@dataclass(frozen=True)
class Pictures:
    """Pictures by number. ids: one per picture; arrays: (N, 3, Y, X) uint8, in memory or mapped from a file."""

    ids: Sequence[str]
    arrays: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: np.ndarray) -> Tensor:
        """(B,) indices → (B, 3, Y, X) uint8."""
        return torch.from_numpy(self.arrays[indices])


def read_pictures(config: VQTrainConfig, tokenizer: VQConfig, scratch: Path, report: ReadReport | None = None) -> Pictures:
    """All pictures of `config.data` (the first `max_images`), fitted as `tokenizer` says; `scratch` may take a large file.

    Raises `InputError` when there is no data or no picture in it, `BudgetError` when too much of it was rejected.
    """
    if config.data is None:
        raise InputError("no training pictures given; set `data` to a folder, a tar or a JSONL file")
    documents = read_documents(config.data, report=report)
    pictures = collect_pictures(documents, tokenizer, scratch, config.max_images, config.memory_limit_gib)
    if report is not None:
        report.check()
    if not len(pictures):
        raise InputError(f"{config.data} holds no pictures; a tokenizer is trained on pictures")
    return pictures


def collect_pictures(
    documents: Iterator[Document],
    tokenizer: VQConfig,
    scratch: Path,
    max_images: int | None = None,
    memory_limit_gib: float = 2.0,
) -> Pictures:
    """The pictures of `documents` in their order; see `read_pictures`."""
    size = tokenizer.image_size
    spool = _Spool((3, size, size), int(memory_limit_gib * 2**30), scratch)
    ids: list[str] = []
    for document in documents:
        for number, segment in enumerate(document.images):
            if segment.image is None and segment.path is None and segment.encoded is None:
                continue  # codes of some other tokenizer
            spool.add(image_array(fit_image(segment.load(), size, tokenizer.preprocessing)))
            ids.append(f"{document.id}#{number}")
            if len(ids) == max_images:
                return Pictures(ids, spool.finish())
    return Pictures(ids, spool.finish())


def split_validation(pictures: Pictures, fraction: float, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices for training and for validation: the pictures whose ids hash lowest are held out, at least one of several.

    With a single picture, or `fraction` 0, validation is empty.
    """
    count = min(at_most, round(fraction * len(pictures)))
    if fraction > 0 and at_most > 0 and len(pictures) > 1:
        count = max(count, 1)
    order = np.argsort([derive_seed("validation", name) for name in pictures.ids], kind="stable")
    return np.sort(order[count:]), np.sort(order[:count])


class BatchOrder:
    """Which pictures are in which step: endless shuffled passes over `indices`, a pure function of (seed, step)."""

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int) -> None:
        self.indices, self.batch_size, self.seed = indices, batch_size, seed
        self._epoch, self._order = -1, indices  # the permutation in use: a cache, not state

    def step(self, step: int) -> np.ndarray:
        """(batch_size,) picture numbers of `step`."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(positions, len(self.indices))
        return np.concatenate([self._permutation(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)])

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = numpy_generator(self.seed, "order", epoch).permutation(self.indices)
        return self._order


class _Spool:
    """Collects arrays of one shape: in memory up to `limit` bytes, then all of them in an unnamed file in `scratch`."""

    def __init__(self, shape: tuple[int, ...], limit: int, scratch: Path) -> None:
        self.shape, self.limit, self.scratch = shape, limit, scratch
        self.kept: list[np.ndarray] = []
        self.count = 0
        self.file: Any = None  # an unnamed file, once there is one

    def add(self, array: np.ndarray) -> None:
        self.count += 1
        if self.file is None:
            self.kept.append(array)
            if self.count * array.nbytes <= self.limit:
                return
            with storage_errors(self.scratch):
                self.scratch.mkdir(parents=True, exist_ok=True)
                self.file = tempfile.TemporaryFile(dir=self.scratch)  # noqa: SIM115 - lives as long as the map
        with storage_errors(self.scratch):
            for kept in self.kept or [array]:
                self.file.write(kept.tobytes())
        self.kept = []

    def finish(self) -> np.ndarray:
        if self.file is None:
            return np.stack(self.kept) if self.kept else np.empty((0, *self.shape), np.uint8)
        with self.file as file:  # the map keeps the unnamed file alive
            file.flush()
            return np.memmap(file, np.uint8, "r", shape=(self.count, *self.shape))
