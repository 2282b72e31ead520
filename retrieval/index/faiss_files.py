"""A faiss index as a file: written and read in one place, and checked against what the bank says of it.

faiss is not meant for untrusted files, so the bank verifies the hash of the file before this reads it; here the
contents are compared with the vectors they claim to index.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cm3.core.errors import ArtefactError
from retrieval.index.protocol import Hits

FILE = "index.faiss"


def write_index(index: faiss.Index, folder: Path) -> None:
    """Write `index` into `folder`."""
    faiss.write_index(index, str(folder / FILE))


def read_index(folder: Path, vectors: np.ndarray, kind: type[faiss.Index]) -> Any:
    """Read the index in `folder`. Raises `ArtefactError` unless it is a `kind` over as many vectors of the same width."""
    file = folder / FILE
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise ArtefactError(f"{file} cannot be read by faiss: {str(error).splitlines()[0]}; build the memory again") from None
    found = (type(index).__name__, index.ntotal, index.d, index.metric_type)
    expected = (kind.__name__, *vectors.shape, faiss.METRIC_INNER_PRODUCT)
    if found != expected:
        raise ArtefactError(f"{file} is {found}, but its vectors ask for {expected}; build the memory again")
    return index


def ordered_hits(scores: np.ndarray, rows: np.ndarray) -> Hits:
    """faiss results in the order of `Hits`: score falling, equal scores by row, missing ones (row -1) last."""
    scores = np.where(rows < 0, -np.inf, scores).astype(np.float32)
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
