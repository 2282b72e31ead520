"""Training pictures: read once through the readers, fitted to size, kept as uint8 in memory or in a file of raw pixels.

Every image segment of every document is one picture. Decoding and resizing happen once; a batch is then an index
operation. Above `memory_limit_gib` the pixels go to a scratch file that is mapped instead.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
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
from cm3.documents.reasons import RecordError
from cm3.documents.records import ReadOptions
from cm3.documents.report import ReadReport
from vqgan.config import PreprocessConfig, VQConfig, VQTrainConfig
from vqgan.loading import ordered_map, picture
from vqgan.preprocessing import fitted_array
from vqgan.regions import region_map, training_images

_HASHED = 256  # pictures at a time
_AT_ONCE = 64 * 96 * 96  # pixels


@dataclass(frozen=True)
class Pictures:
    """Pictures by number. ids: one per picture; arrays: (N, 3, Y, X) uint8, in memory or mapped from a file; regions:
    (N, Y, X) uint8 strengths of what matters (see `vqgan.regions`), None when nothing is emphasized."""

    ids: Sequence[str]
    arrays: np.ndarray
    regions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def at_once(self) -> int:
        """How many go through a network together where no gradient is needed: at most 64, few of large ones, which then take
        less memory than a training step with one."""
        return max(1, min(64, _AT_ONCE // (self.arrays.shape[2] * self.arrays.shape[3])))

    def take(self, indices: np.ndarray) -> Tensor:
        """(B,) indices → (B, 3, Y, X) uint8."""
        return torch.from_numpy(self.arrays[indices])

    def take_regions(self, indices: np.ndarray) -> Tensor | None:
        """(B,) indices → (B, Y, X) uint8, or None."""
        return None if self.regions is None else torch.from_numpy(self.regions[indices])

    def fingerprint(self) -> str:
        """SHA-256 (hex) over ids, pixels and strengths: equal for equal training data, wherever it came from."""
        total = hashlib.sha256("\0".join(self.ids).encode())
        for array in (self.arrays, self.regions):
            for start in range(0, 0 if array is None else len(array), _HASHED):
                total.update(np.ascontiguousarray(array[start : start + _HASHED]).data)  # type: ignore[index]
        return total.hexdigest()


@dataclass(frozen=True)
class Collecting:
    """How pictures are collected: at most `max_images`; pixels beyond `memory_limit_gib` in a file in `scratch`; by `workers`
    threads; `draft` see `vqgan.loading`; `regions` also collects the maps of what matters, for which pictures are whole."""

    scratch: Path
    max_images: int | None = None
    memory_limit_gib: float = 2.0
    workers: int = 1
    draft: bool = False
    regions: bool = False


def read_pictures(config: VQTrainConfig, tokenizer: VQConfig, scratch: Path, report: ReadReport | None = None) -> Pictures:
    """All pictures of `config.data` (the first `max_images`), fitted as `tokenizer` says; `scratch` may take a large file.

    Raises `InputError` when there is no data or no picture in it, `BudgetError` when too much of it was rejected.
    """
    if config.data is None:
        raise InputError("no training pictures given; set `data` to a folder, a tar or a JSONL file")
    report = ReadReport() if report is None else report
    documents = read_documents(config.data, report=report, options=ReadOptions(decode=False))
    emphasized = config.loss.region_emphasis != 1
    how = Collecting(scratch, config.max_images, config.memory_limit_gib, config.workers, config.draft, emphasized)
    pictures = collect_pictures(documents, tokenizer, how, report)
    report.check()
    if not len(pictures):
        raise InputError(f"{config.data} holds no pictures; a tokenizer is trained on pictures")
    return pictures


def collect_pictures(
    documents: Iterable[Document], tokenizer: VQConfig, how: Collecting, report: ReadReport | None = None
) -> Pictures:
    """The pictures of `documents` in their order. A document with an unusable one goes over from `report.ok` to rejected;
    without a report it raises `RecordError`."""
    size, limit = tokenizer.image_size, int(how.memory_limit_gib * 2**30)
    arrays = _Spool((3, size, size), limit, how.scratch)
    regions = _Spool((size, size), limit // 3, how.scratch) if how.regions else None
    ids: list[str] = []
    load = partial(_load, size=size, config=tokenizer.preprocessing, how=how)
    for loaded in ordered_map(load, documents, how.workers):
        if isinstance(loaded, _Refused):
            if report is None:
                raise loaded.error
            report.take_back(loaded.error, loaded.key)
            continue
        for key, array, strengths in loaded:
            arrays.add(array)
            if regions is not None:
                regions.add(strengths)
            ids.append(key)
            if len(ids) == how.max_images:
                return Pictures(ids, arrays.finish(), regions.finish() if regions else None)
    return Pictures(ids, arrays.finish(), regions.finish() if regions else None)


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


@dataclass(frozen=True)
class _Refused:
    key: str
    error: RecordError


def _load(
    document: Document, size: int, config: PreprocessConfig, how: Collecting
) -> list[tuple[str, np.ndarray, np.ndarray]] | _Refused:
    """Id, fitted array and strengths (empty when not asked for) of every picture of a document, or why there are none."""
    loaded = []
    try:
        for place, segment in enumerate(training_images(document)):
            number = document.images.index(segment)  # ids count all pictures of the document
            whole = picture(segment, size, how.draft)
            strengths = region_map(document, place, whole.size, size, config) if how.regions else np.empty(0, np.uint8)
            loaded.append((f"{document.id}#{number}", fitted_array(whole, size, config), strengths))
    except RecordError as error:
        return _Refused(document.id, error)
    return loaded


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
