"""The contract of the protocol `Retriever`, which every implementation passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import retrieval
from cm3.core.errors import InputError, UsageError
from cm3.core.protocols import Retriever
from cm3.documents.document import Document, Neighbor
from retrieval.config import BuildConfig

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")


@pytest.fixture(scope="module", params=["flat", "hnsw"])
def retriever(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    documents = [Document.pair(color, f"a field of {color}", Image.new("RGB", (8, 8), color)) for color in COLORS]
    out: Path = tmp_path_factory.mktemp("bank") / "memory"
    retrieval.build(documents, out, "hashing", BuildConfig(index=request.param))
    return retrieval.open(out)


def test_is_a_retriever(retriever: Retriever) -> None:
    assert isinstance(retriever, Retriever)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_gives_k_neighbors_by_falling_score(retriever: Retriever, k: int) -> None:
    found = retriever.search(text="a field of blue", k=k)
    assert all(isinstance(neighbor, Neighbor) for neighbor in found)
    assert [neighbor.rank for neighbor in found] == list(range(k))
    assert len({neighbor.document.id for neighbor in found}) == k
    scores = [neighbor.score for neighbor in found]
    assert scores == sorted(scores, reverse=True)


def test_finds_by_text_by_picture_and_by_both(retriever: Retriever) -> None:
    picture = Image.new("RGB", (20, 10), "green")
    assert retriever.search(text="a field of green")[0].document.id == "green"
    assert retriever.search(image=picture)[0].document.id == "green"
    assert retriever.search(text="a field of green", image=picture)[0].document.id == "green"


def test_is_deterministic(retriever: Retriever) -> None:
    first, second = (retriever.search(text="red or blue", k=5) for _ in range(2))
    assert [(hit.document.id, hit.score) for hit in first] == [(hit.document.id, hit.score) for hit in second]


def test_more_than_there_are_gives_all(retriever: Retriever) -> None:
    assert len(retriever.search(text="red", k=100)) == len(COLORS)


def test_refuses_an_empty_query_and_a_k_below_one(retriever: Retriever) -> None:
    with pytest.raises(InputError):
        retriever.search()
    with pytest.raises(UsageError):
        retriever.search(text="red", k=0)
