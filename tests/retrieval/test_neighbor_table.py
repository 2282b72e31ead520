"""The table of neighbors: what pretraining reads, and never a document's own content. `CM3_DRILLS=34` asks ten thousand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retrieval
from cm3.core.artefact import fingerprint, read_manifest, verify
from cm3.core.errors import InputError
from cm3.documents.document import Document
from cm3.documents.order import order_digest
from cm3.pretrain import run as pretrain
from retrieval import neighbor_table
from retrieval.retriever import NO_NEIGHBOR
from retrieval.store import content_hash


def crowd(count: int) -> list[Document]:
    """Documents of few words and few colors: a third are exact duplicates of others under other ids or other words."""
    rng = np.random.default_rng(0)
    documents = []
    for number in range(count):
        content = int(rng.integers(2 * count // 3))
        drawn = np.random.default_rng(content)
        picture = Image.fromarray(drawn.integers(0, 256, (6, 6, 3), np.uint8))
        words = " ".join(drawn.choice(["red", "green", "blue", "round", "flat", "old"], 3))
        documents.append(Document.pair(f"d{number}", words, picture))
    return documents


@pytest.mark.parametrize("recipe", ["cm3leon", "ra_cm3"])
def test_no_document_ever_gets_itself_or_a_duplicate(recipe: str, tmp_path: Path, times: Callable[[int], range]) -> None:
    documents = crowd(min(len(times(300)), 10_000))
    retrieval.build(documents, tmp_path / "bank", "hashing")
    config = getattr(retrieval.RetrieverConfig, recipe)(seed=3)
    made = retrieval.write_neighbors(retrieval.open(tmp_path / "bank"), documents, tmp_path / "table", 2, config)
    table = np.load(made.path / neighbor_table.TABLE)
    pictures = np.array([content_hash(document)[1] for document in documents], np.uint64)
    assert len(np.unique(pictures)) < 0.8 * len(documents)  # there are duplicates to fall for
    found = table != NO_NEIGHBOR
    assert found.mean() > 0.9
    owners = np.broadcast_to(np.arange(len(documents))[:, None], table.shape)
    assert int((pictures[table[found]] == pictures[owners[found]]).sum()) == 0
    assert made.complete == found.all(axis=1).mean()


def test_it_is_the_table_that_pretraining_reads(hashing_bank: Path, pairs: list[Document], tmp_path: Path) -> None:
    assert (neighbor_table.KIND, neighbor_table.TABLE) == (pretrain.NEIGHBORS_KIND, pretrain.NEIGHBORS_FILE)
    bank = retrieval.open(hashing_bank)
    for name in "ab":
        retrieval.write_neighbors(bank, pairs, tmp_path / name, 3)
    made_of = read_manifest(tmp_path / "a").provenance
    assert made_of["documents"] == made_of["neighbors"] == order_digest(pair.id for pair in pairs)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert verify(tmp_path / "a", "neighbors").provenance["memory"] == fingerprint(hashing_bank)
    table = np.load(tmp_path / "a" / neighbor_table.TABLE)
    lines = [json.loads(line) for line in (tmp_path / "a" / neighbor_table.BY_ID).read_text().splitlines()]
    assert [line["id"] for line in lines] == [pair.id for pair in pairs]
    assert [len(line["neighbors"]) for line in lines] == (table != NO_NEIGHBOR).sum(axis=1).tolist()


def test_no_documents_are_an_input_error(hashing_bank: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no documents"):
        retrieval.write_neighbors(retrieval.open(hashing_bank), [], tmp_path / "table", 2)
    assert not (tmp_path / "table").exists()
