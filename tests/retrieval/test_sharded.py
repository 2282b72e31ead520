"""Several banks searched as one, and merged into one, give what one bank of all documents gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import retrieval
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.core.protocols import Retriever
from cm3.documents.document import Document


def build_shards(pairs: list[Document], folder: Path) -> tuple[list[Path], list[Document]]:
    """Three banks of unequal size, the last one of copies of documents of the first, which score equally; and all documents."""
    copies = [Document.pair(f"copy of {pair.id}", pair.text, pair.images[0].load()) for pair in pairs[:7]]
    parts = [pairs[:30], pairs[30:], copies]
    paths = [folder / str(number) for number in range(3)]
    for part, path in zip(parts, paths, strict=True):
        retrieval.build(part, path, "hashing")
    return paths, [document for part in parts for document in part]


def test_side_by_side_and_merged_equal_one_bank(pairs: list[Document], tmp_path: Path) -> None:
    paths, documents = build_shards(pairs, tmp_path)
    retrieval.build(documents, tmp_path / "whole", "hashing")
    assert retrieval.merge(paths, tmp_path / "merged").count == len(documents)
    whole, merged = retrieval.open(tmp_path / "whole"), retrieval.open(tmp_path / "merged")
    together = retrieval.open_banks(paths)
    assert isinstance(together, retrieval.ShardedBank)
    assert isinstance(together, Retriever)
    assert len(together) == len(whole) == len(merged)
    queries = np.asarray(whole.vectors)
    for k in (1, 5, 40, 1000):
        expected = whole.nearest(queries, k)
        for bank in (merged, together):
            scores, rows = bank.nearest(queries, k)
            assert (rows == expected[1]).all()
            assert (scores == expected[0]).all()
    expected_ids = [hit.document.id for hit in whole.search(text=pairs[3].text, k=9)]
    assert [hit.document.id for hit in together.search(text=pairs[3].text, k=9)] == expected_ids
    assert [hit.rank for hit in together.search(text=pairs[3].text, k=9)] == list(range(9))


def test_banks_of_different_encoders_do_not_go_together(clip_bank: Path, hashing_bank: Path, tmp_path: Path) -> None:
    for join in (retrieval.open_banks, lambda paths: retrieval.merge(paths, tmp_path / "out")):
        with pytest.raises(ArtefactError, match="do not compare"):
            join([clip_bank, hashing_bank])
    assert not (tmp_path / "out").exists()


def test_an_id_in_two_banks_cannot_be_merged(hashing_bank: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be unique"):
        retrieval.merge([hashing_bank, hashing_bank], tmp_path / "out")


def test_no_banks_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        retrieval.merge([], tmp_path / "out")
    with pytest.raises(UsageError):
        retrieval.open_banks([])
