"""Arrays in NumPy's file format, opened by one thread at a time.

NumPy reads a file's header with `ast`, of which Python 3.11 keeps one recursion counter for all threads: two headers read at once
can end in `SystemError: AST constructor recursion depth mismatch` (github.com/python/cpython/issues/106905).
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import numpy as np

_one_at_a_time = threading.Lock()


def read_array(file: Path, mapped: Literal["r", "c"] | None = None) -> np.ndarray:
    """The array in `file`, read as a whole or mapped: "r" for reading, "c" as a copy on write.

    Raises `OSError` for a file that is not there, `ValueError` for one that is no array, holds Python objects, is empty or cut
    short, and for an array of no bytes, which cannot be mapped.
    """
    try:
        with _one_at_a_time:
            array: np.ndarray = np.load(file, mmap_mode=mapped, allow_pickle=False)
    except EOFError:
        raise ValueError("the file is empty") from None
    return array
