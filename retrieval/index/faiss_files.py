"""A faiss index as a file: written and read in one place, and checked against what the bank says of it.

faiss is not meant for untrusted files, so the bank verifies the hash of the file before this reads it; here the
contents are compared with the vectors they claim to index, and no class is used but those that the kind of index is made of:
faiss reads many more, among them lists that lie in another file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from cm3.core.errors import ArtefactError

FILE = "index.faiss"


def write_index(index: faiss.Index, folder: Path) -> None:
    """Write `index` into `folder`."""
    faiss.write_index(index, str(folder / FILE))


def read_index(folder: Path, vectors: np.ndarray, classes: Sequence[str]) -> Any:
    """Read the index in `folder`.

    Raises `ArtefactError` unless it is made of these faiss `classes` (see `classes_of`), over as many vectors of the same width.
    """
    file = folder / FILE
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise ArtefactError(f"{file} cannot be read by faiss: {str(error).splitlines()[0]}; build the memory again") from None
    if (made_of := classes_of(index)) != list(classes):
        raise ArtefactError(
            f"{file} is made of {', '.join(made_of)}, expected {', '.join(classes)}; restore it from a copy, or build the memory "
            "again"
        )
    found = (index.ntotal, index.d, index.metric_type, index.is_trained)
    expected = (*vectors.shape, faiss.METRIC_INNER_PRODUCT, True)
    if found != expected:
        raise ArtefactError(
            f"{file} does not belong to these vectors: its (count, width, metric, trained) are {found}, expected {expected}; "
            "build the memory again"
        )
    return index


def classes_of(index: faiss.Index) -> list[str]:
    """The faiss classes that an index is made of, from the outside inward: transforms, index, quantizer or storage, lists."""
    outer: Any = faiss.downcast_index(index)
    inner = [type(outer).__name__]
    if isinstance(outer, faiss.IndexPreTransform):
        chain: Any = outer.chain
        transforms = (faiss.downcast_VectorTransform(chain.at(place)) for place in range(chain.size()))
        return [*inner, *(type(transform).__name__ for transform in transforms), *classes_of(outer.index)]
    if isinstance(outer, faiss.IndexHNSW):
        return [*inner, *classes_of(outer.storage)]
    if isinstance(outer, faiss.IndexIVF):
        lists: Any = outer.invlists
        return [*inner, *classes_of(outer.quantizer), type(faiss.downcast_InvertedLists(lists)).__name__]
    return inner
