"""A memory bank checked beyond its hashes: every document read, every vector looked at, the index asked for what it holds.

The hashes say that the files are as they were written; this says that what was written makes sense.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cm3.core.artefact import fingerprint
from cm3.core.errors import ArtefactError
from cm3.core.progress import progress
from retrieval.bank import MemoryBank, open_bank
from retrieval.evaluation import evaluate_bank

_BLOCK = 65_536
_UNIT = 1e-3  # how far from 1 the length of a unit vector may be


def check_bank(path: Path | str) -> dict[str, Any]:
    """Verify the bank at `path` and read all of it: {"ok", "documents", "generation", "fingerprint", "self_retrieval"}.

    Raises `ArtefactError` for a changed file, a document that cannot be read or stands in another's row, a vector that is
    not of length 1, or an exact index that does not find its own documents.
    """
    bank = open_bank(path)
    with progress(len(bank), "verify", unit="document") as bar:
        for row in range(len(bank)):
            _ = bank.store[row]  # raises for a row that does not hold the document its id names
            bar.advance()
    _check_vectors(bank)
    found = evaluate_bank(bank)["self_retrieval"]
    if bank.info.index["kind"] == "flat" and found < 1:
        raise ArtefactError(f"{path}: only {found:.1%} of the documents find themselves by their own vector; build it again")
    return {
        "ok": True,
        "documents": len(bank),
        "generation": bank.folder.name,
        "fingerprint": fingerprint(bank.folder),
        "self_retrieval": found,
    }


def _check_vectors(bank: MemoryBank) -> None:
    for start in range(0, len(bank), _BLOCK):
        lengths = np.linalg.norm(bank.vectors[start : start + _BLOCK], axis=1)
        if len(wrong := np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT))):  # also NaN
            row = start + int(wrong[0])
            raise ArtefactError(
                f"{bank.folder}: the vector of document {bank.ids[row]!r} has length {lengths[wrong[0]]:.4g}, expected 1; "
                "build the memory again"
            )
