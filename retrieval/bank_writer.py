"""The documents and vectors of a bank in the making: appended in order, kept when a process dies, continued by the next one.

The folder is a scratch folder beside the bank. Every half minute what is there is synced and counted in `progress.json`; the next
run of the same command reads its source again from the start, passes over every document that is already there with the same
id and content, and goes on with the first one that is not. So the account of the source is whole, a source that changed
meanwhile costs only what follows the change, and the bank is byte for byte that of a run without interruption.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from cm3.core.artefact import read_json, storage_errors, write_json
from cm3.core.errors import ArtefactError
from cm3.core.progress import progress
from cm3.documents.document import Document
from cm3.train.runlock import LOCK_NAME, run_lock
from retrieval.bank import MemoryBank
from retrieval.config import BuildConfig
from retrieval.document_writer import ROWS, Content, DocumentWriter
from retrieval.embedding import embed_documents
from retrieval.encoders import Encoder
from retrieval.store import content_hash
from retrieval.vectors import VectorWriter

PROGRESS = "progress.json"
CHECKPOINT_S = 30.0  # less work than this is not worth a folder that stays behind
_BLOCK = 4096

_logger = logging.getLogger(__name__)


class BankWriter:
    """Appends documents and their vectors to `folder`; made by `writing_bank`.

    `resumed` is how many documents of an earlier run it found; as long as the documents that come in are those, in order,
    they are not encoded again. `finished`: nothing more can be added.
    """

    def __init__(self, folder: Path, encoder: Encoder, config: BuildConfig) -> None:
        self.folder, self.encoder, self.config = folder, encoder, config
        self._identity = {"encoder": encoder.fingerprint, "max_image_side": config.max_image_side}
        self.resumed = self._left_over()
        _make_own(folder, anew=self.resumed == 0)
        self._documents = DocumentWriter(folder, config.max_image_side, self.resumed)
        self._vectors = VectorWriter(folder, encoder.width, self.resumed)
        self._seen, self._checkpoint, self.finished = 0, time.monotonic(), False

    @property
    def count(self) -> int:
        """Documents so far."""
        return len(self._documents)

    def add(self, documents: Sequence[Document], vectors: np.ndarray | None = None) -> int:
        """Encode and append `documents`; with `vectors` (n, E), unit rows, they are not encoded but taken as they are.

        Returns how many of them an earlier run had added. Raises `InputError` for a double id or a document that cannot be
        encoded or stored.
        """
        known = self._pass_over(len(documents), lambda row: (documents[row].id, content_hash(documents[row])))
        if fresh := documents[known:]:
            self._vectors.add(embed_documents(fresh, self.encoder) if vectors is None else vectors[known:])
        for document in fresh:
            self._documents.add(document)
        self._sync_now_and_then()
        return known

    def take_over(self, bank: MemoryBank, rows: np.ndarray) -> None:
        """Append the documents in `rows` of `bank`, which has the same encoder, with their stored vectors and pictures."""
        bank.check_encoder(self.encoder)
        with progress(len(rows), "documents kept", unit="document") as bar:
            for start in range(0, len(rows), _BLOCK):
                self._take_over_block(bank, rows[start : start + _BLOCK])
                bar.advance(len(rows[start : start + _BLOCK]))

    def _take_over_block(self, bank: MemoryBank, block: np.ndarray) -> None:
        contents = zip(block.tolist(), bank.store.content[block].tolist(), strict=True)
        identities = [(bank.ids[row], (text, pixels)) for row, (text, pixels) in contents]
        known = self._pass_over(len(block), identities.__getitem__)
        self._vectors.add(bank.vectors[block[known:]])
        for row in block[known:].tolist():
            self._documents.take_over(bank.store, row)
        self._sync_now_and_then()

    def finish(self) -> None:
        """Complete the files of documents and vectors; documents of an earlier run that did not come in again are dropped."""
        self._cut(self._seen)
        if (self.folder / PROGRESS).is_file():  # whatever happens to the index, the documents need not be encoded again
            self.checkpoint()
        self.finished = True
        self._documents.finish()
        self._vectors.finish()

    def checkpoint(self) -> None:
        """Have everything so far reach the disk, and count it: from here a later run goes on."""
        self._documents.flush()
        self._vectors.flush()
        write_json(self.folder / PROGRESS, {**self._identity, "count": self.count})
        self._checkpoint = time.monotonic()

    def close(self) -> None:
        """Close the open files."""
        self._documents.close()
        self._vectors.close()

    def _left_over(self) -> int:
        """How many documents of an earlier run can be used, in whole batches: with others the last bits would differ."""
        if not (self.folder / PROGRESS).is_file():
            return 0
        try:
            left: dict[str, Any] = read_json(self.folder / PROGRESS)
            count = int(left.pop("count"))
        except (ArtefactError, KeyError, TypeError, ValueError, AttributeError):
            return 0
        return count // self.config.batch_size * self.config.batch_size if left == self._identity else 0

    def _pass_over(self, count: int, identity: Callable[[int], tuple[str, Content]]) -> int:
        """How many of the next `count` documents stand here already; `identity(i)` is the id and the content of the i-th."""
        stored = self._documents.stored(self._seen, min(count, self.count - self._seen))
        known = next((row for row, found in enumerate(stored) if identity(row) != found), len(stored))
        if known < count:
            self._cut(self._seen + known)
        self._seen += count
        return known

    def _cut(self, count: int) -> None:
        if count < self.count:
            self._documents.cut(count)
            self._vectors.cut(count)

    def _sync_now_and_then(self) -> None:
        if time.monotonic() - self._checkpoint >= CHECKPOINT_S:
            self.checkpoint()


@contextmanager
def writing_bank(out: Path, folder: Path, encoder: Encoder, config: BuildConfig) -> Iterator[BankWriter]:
    """A writer in the scratch folder `folder` of the bank `out`; the folder is removed at the end of the block.

    When the block fails after a checkpoint, the folder stays for the next run. Raises `RunLockedError` when another process
    builds there, `StorageError` when it cannot be written.
    """
    with run_lock(folder), storage_errors(out):
        writer = BankWriter(folder, encoder, config)
        try:
            yield writer
        except BaseException:
            kept = (folder / PROGRESS).is_file()
            with suppress(OSError):  # a full disk, which is why the block failed
                if kept and not writer.finished:
                    writer.checkpoint()
                writer.close()
            if kept:
                _logger.warning("%s: the work so far is kept in %s; the same command goes on from there", out, folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        writer.close()
        shutil.rmtree(folder, ignore_errors=True)


def _make_own(folder: Path, anew: bool) -> None:
    """Remove what an earlier run left in the scratch folder, or, to go on with it, make it this run's alone.

    A run that died after `hand_over` left files that a published bank holds too: writing to them would change that bank.
    """
    for file in folder.iterdir():
        if file.name == LOCK_NAME:
            continue
        if anew:
            file.unlink()
        elif file.stat().st_nlink > 1:
            copy = file.with_name(f"{file.name}.copy")
            shutil.copyfile(file, copy)
            os.replace(copy, file)


def hand_over(folder: Path, target: Path) -> None:
    """The finished files of the scratch folder `folder` into `target`, without copying where the file system can."""
    for file in sorted(folder.iterdir()):
        if file.name in (ROWS, PROGRESS, LOCK_NAME):
            continue
        try:
            (target / file.name).hardlink_to(file)
        except OSError:  # a file system without hard links
            shutil.copyfile(file, target / file.name)
