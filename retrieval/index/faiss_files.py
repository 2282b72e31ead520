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

FILE = "index.faiss"


def write_index(index: faiss.Index, folder: Path) -> None:
    """Write `index` into `folder`."""
    faiss.write_index(index, str(folder / FILE))


def read_index(folder: Path, vectors: np.ndarray) -> Any:
    """Read the index in `folder`. Raises `ArtefactError` unless it is one over as many vectors of the same width."""
    file = folder / FILE
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise ArtefactError(f"{file} cannot be read by faiss: {str(error).splitlines()[0]}; build the memory again") from None
    found = (index.ntotal, index.d, index.metric_type, index.is_trained)
    expected = (*vectors.shape, faiss.METRIC_INNER_PRODUCT, True)
    if found != expected:
        raise ArtefactError(
            f"{file} does not belong to these vectors: its (count, width, metric, trained) are {found}, expected {expected}; "
            "build the memory again"
        )
    return index
