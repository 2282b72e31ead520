"""Neighbors for training: related, varied, never the document itself, and the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retrieval
from cm3.core.errors import UsageError
from cm3.documents.document import Document, ImageSegment, TextSegment
from retrieval.bank import MemoryBank
from retrieval.config import RetrieverConfig
from retrieval.encoders.hashing import HashingEncoder
from retrieval.retriever import NO_NEIGHBOR, NeighborFinder

LOOSE = RetrieverConfig(max_similarity=1.0, query_dropout=0)


def ids(bank: MemoryBank, documents: Sequence[Document], config: RetrieverConfig, k: int = 3) -> list[list[str]]:
    found = NeighborFinder(bank, config).neighbors(documents, k)
    return [[neighbor.document.id for neighbor in neighbors] for neighbors in found]


@pytest.mark.parametrize("query", ["text", "image", "both", "either", "each"])
def test_never_itself_nor_an_exact_duplicate(query: str, pairs: list[Document], tmp_path: Path) -> None:
    copies = [Document.pair(f"copy of {pair.id}", pair.text, pair.images[0].load()) for pair in pairs]
    renamed = [Document.pair(f"renamed {pair.id}", "other words", pair.images[0].load()) for pair in pairs]
    retrieval.build([*pairs, *copies, *renamed], tmp_path / "bank", "hashing")
    config = RetrieverConfig(query=query, max_similarity=1.0, seed=1)
    for pair, found in zip(pairs, ids(retrieval.open(tmp_path / "bank"), pairs, config, 5), strict=True):
        assert len(found) == 5
        assert not any(pair.id in name for name in found)


def test_a_text_alone_is_not_its_own_neighbor_under_another_id(tmp_path: Path) -> None:
    documents = [Document(str(n), (TextSegment(f"shared words {n // 2}"),)) for n in range(8)]
    retrieval.build(documents, tmp_path / "bank", "hashing")
    found = ids(retrieval.open(tmp_path / "bank"), documents, LOOSE)
    assert all(int(name) // 2 != number // 2 for number, names in enumerate(found) for name in names)


def test_neither_near_the_query_nor_near_each_other(hashing_bank: Path, pairs: list[Document]) -> None:
    bank = retrieval.open(hashing_bank)
    config = RetrieverConfig(query="text", max_similarity=0.8, query_dropout=0)
    finder, encoder = NeighborFinder(bank, config), HashingEncoder()
    for pair, rows in zip(pairs, finder.table(pairs, 4), strict=True):
        vectors = np.asarray(bank.vectors[rows[rows != NO_NEIGHBOR]])
        assert (vectors @ encoder.encode_texts([pair.text])[0] <= 0.8 + 1e-6).all()
        similar = vectors @ vectors.T - np.eye(len(vectors))
        assert similar.max() <= 0.8 + 1e-6
    strict = RetrieverConfig(query="text", max_similarity=-1)
    assert (NeighborFinder(bank, strict).table(pairs, 4) == NO_NEIGHBOR).all()


def test_two_queries_choose_together(hashing_bank: Path, pairs: list[Document]) -> None:
    """Text and picture ask apart: what either finds is near neither query, nor near what the other found."""
    bank, encoder = retrieval.open(hashing_bank), HashingEncoder()
    finder = NeighborFinder(bank, RetrieverConfig(query="each", max_similarity=0.8, query_dropout=0))
    table = finder.table(pairs, 4)
    assert (table != NO_NEIGHBOR).any()
    for pair, rows in zip(pairs, table, strict=True):
        vectors = np.asarray(bank.vectors[rows[rows != NO_NEIGHBOR]])
        asked = np.concatenate([encoder.encode_texts([pair.text]), encoder.encode_images([pair.images[0].load()])])
        assert (vectors @ asked.T <= 0.8 + 1e-5).all()
        assert len(vectors) < 2 or (vectors @ vectors.T - np.eye(len(vectors))).max() <= 0.8 + 1e-5


def test_pictures_of_codes_alone_do_not_ask(pairs: list[Document], tmp_path: Path) -> None:
    grids = [np.arange(number, number + 4).reshape(2, 2) for number in range(len(pairs))]
    codes = [Document(pair.id, (pair.segments[0], ImageSegment(codes=grid))) for pair, grid in zip(pairs, grids, strict=True)]
    retrieval.build(codes, tmp_path / "bank", "hashing")
    bank = retrieval.open(tmp_path / "bank")
    assert (NeighborFinder(bank, LOOSE).table(codes[:5], 2) != NO_NEIGHBOR).all()


def test_whole_documents_go_first(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    bank_documents = [
        Document("words", (TextSegment("red circle there"),)),
        Document("picture", (ImageSegment(image=Image.new("RGB", (8, 8), (250, 5, 0))),)),
        Document.pair("whole", "red", Image.new("RGB", (8, 8), (200, 60, 60))),
    ]
    retrieval.build(bank_documents, tmp_path / "bank", "hashing")
    bank, query = retrieval.open(tmp_path / "bank"), [Document.pair("q", "red circle here", picture)]
    assert ids(bank, query, LOOSE.model_copy(update={"query": "text"}))[0][0] == "whole"
    relevant = LOOSE.model_copy(update={"query": "text", "prefer_whole": False})
    assert ids(bank, query, relevant)[0][0] == "words"


def test_text_and_picture_answer_in_turns(hashing_bank: Path, pairs: list[Document]) -> None:
    bank = retrieval.open(hashing_bank)
    by_text, by_image, by_each = (
        ids(bank, pairs[:1], LOOSE.model_copy(update={"query": query}), 2)[0] for query in ("text", "image", "each")
    )
    expected = list(dict.fromkeys([by_text[0], by_image[0], by_text[1], by_image[1]]))[:2]
    assert by_each == expected


def test_deterministic_by_seed_and_independent_of_what_else_is_asked(hashing_bank: Path, pairs: list[Document]) -> None:
    bank, config = retrieval.open(hashing_bank), RetrieverConfig(query="either", max_similarity=0.95, seed=4)
    together = ids(bank, pairs, config)
    assert together == ids(bank, pairs, config)
    assert together[7:9] == ids(bank, pairs[7:9], config)
    assert together != ids(bank, pairs, config.model_copy(update={"seed": 5}))


def test_the_table_holds_the_rows_of_the_neighbors(hashing_bank: Path, pairs: list[Document]) -> None:
    bank, config = retrieval.open(hashing_bank), RetrieverConfig.cm3leon()
    table = NeighborFinder(bank, config).table(pairs, 60)
    assert table.shape == (len(pairs), 60)
    names = [[bank.ids[row] for row in rows if row != NO_NEIGHBOR] for rows in table.tolist()]
    assert names == ids(bank, pairs, config, 60)
    assert (table[:, -1] == NO_NEIGHBOR).all()
    assert NeighborFinder(bank, config).table([], 3).shape == (0, 3)


def test_documents_with_one_part_ask_with_it(hashing_bank: Path, pairs: list[Document]) -> None:
    lone = [Document("t", (TextSegment("red at the left"),)), Document("i", (pairs[0].images[0],))]
    for config in (RetrieverConfig.cm3leon(), RetrieverConfig.ra_cm3()):
        assert all(ids(retrieval.open(hashing_bank), lone, config, 1))


def test_k_below_one_is_a_usage_error(hashing_bank: Path, pairs: list[Document]) -> None:
    with pytest.raises(UsageError, match="k is 0"):
        NeighborFinder(retrieval.open(hashing_bank)).table(pairs, 0)
