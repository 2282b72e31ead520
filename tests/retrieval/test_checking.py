"""`check_bank` finds what hashes cannot: a bank that was written wrong and hashed right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import retrieval
from cm3.core.artefact import current, writing
from cm3.core.errors import ArtefactError


def test_a_good_bank(hashing_bank: Path, clip_bank: Path) -> None:
    for path in (hashing_bank, clip_bank):
        checked = retrieval.check_bank(path)
        assert checked["ok"]
        assert checked["documents"] == 48
        assert checked["self_retrieval"] == 1
        assert checked["generation"] == "generation-000001"


@pytest.mark.parametrize(("factor", "words"), [(2.0, "has length 2"), (np.nan, "has length nan")])
def test_a_vector_that_is_none(factor: float, words: str, hashing_bank: Path, tmp_path: Path) -> None:
    with writing(tmp_path / "wrong", "memory") as folder:
        shutil.copytree(current(hashing_bank), folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        vectors = np.load(folder / "vectors.npy")
        vectors[17] *= factor
        np.save(folder / "vectors.npy", vectors)
    retrieval.open(tmp_path / "wrong")  # every byte is as it was written
    with pytest.raises(ArtefactError, match=words):
        retrieval.check_bank(tmp_path / "wrong")


def test_documents_in_each_others_rows(hashing_bank: Path, tmp_path: Path) -> None:
    with writing(tmp_path / "wrong", "memory") as folder:
        shutil.copytree(current(hashing_bank), folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        ids = (folder / "ids.json").read_text()
        first, second = retrieval.open(hashing_bank).ids[3:5]
        swapped = ids.replace(f'"{first}"', "?").replace(f'"{second}"', f'"{first}"').replace("?", f'"{second}"')
        (folder / "ids.json").write_text(swapped)
    with pytest.raises(ArtefactError, match="row 3 holds"):
        retrieval.check_bank(tmp_path / "wrong")
