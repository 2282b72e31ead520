"""The vectors of a bank on disk: written block by block with their number unknown until the end, read memory-mapped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cm3.core.arrays import read_array
from cm3.core.errors import ArtefactError

FILE = "vectors.npy"


class VectorWriter:
    """Appends blocks (n, E) float32 to vectors.npy after the first `count` rows that are already there.

    The header is written anew by `finish`, in the room NumPy leaves for that.
    """

    def __init__(self, folder: Path, width: int, count: int = 0) -> None:
        self.width, self.count = width, 0
        self._stream: BinaryIO = open(folder / FILE, "r+b" if count else "wb")  # noqa: SIM115 - closed by `close`
        self._write_header()
        self._start = self._stream.tell()
        self.cut(count)

    def add(self, block: np.ndarray) -> None:
        """Append the rows of `block` (n, E)."""
        self._stream.write(np.ascontiguousarray(block, np.float32).tobytes())
        self.count += len(block)

    def cut(self, count: int) -> None:
        """Drop all rows but the first `count`. Raises `ArtefactError` when there are fewer."""
        end = self._start + 4 * self.width * count
        if self._stream.seek(0, os.SEEK_END) < end:
            raise ArtefactError(f"{FILE} holds fewer than {count} vectors; remove its folder to start anew")
        self._stream.truncate(end)
        self._stream.seek(end)
        self.count = count

    def flush(self) -> None:
        """Have everything so far reach the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def finish(self) -> None:
        """State the final number of rows and close the file."""
        self._stream.seek(0)
        self._write_header()
        if self._stream.tell() != self._start:
            raise ArtefactError(f"the header of {FILE} grew while it was written; use a NumPy from 1.24 on")
        self.close()

    def close(self) -> None:
        """Close the file; also right after a failure."""
        self._stream.close()

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, self.width)}
        np.lib.format.write_array_header_1_0(self._stream, header)


def load_vectors(folder: Path, shape: tuple[int, int]) -> np.ndarray:
    """The (N, E) float32 vectors in `folder`, memory-mapped. Raises `ArtefactError` unless they have `shape`."""
    file = folder / FILE
    try:
        vectors = read_array(file, "c")  # "c": torch warns about read-only arrays
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{file} cannot be read: {error}; build the memory again") from None
    if vectors.shape != shape or vectors.dtype != np.float32:
        raise ArtefactError(f"{file} holds {vectors.dtype} of shape {vectors.shape}, expected float32 {shape}; build it again")
    return vectors
