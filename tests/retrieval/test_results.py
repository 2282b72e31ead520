"""Search results as records, table and picture grid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retrieval
from cm3.core.errors import InputError
from cm3.documents.document import Document, ImageSegment, Neighbor, TextSegment
from retrieval.results import picture_grid, search_records, search_table

CODES = Document("codes", (TextSegment("ein ☃\nlong " + "text " * 50), ImageSegment(codes=np.zeros((2, 2), np.int64))))


def test_records_are_json_with_the_agreed_keys(hashing_bank: Path, pairs: list[Document], tmp_path: Path) -> None:
    hits = [*retrieval.open(hashing_bank).search(text=pairs[2].text, k=2), Neighbor(CODES, 0.1, 2)]
    records = json.loads(json.dumps(search_records(hits, tmp_path / "pictures")))
    assert [list(record) for record in records] == [["id", "score", "rank", "text", "image"]] * 3
    assert [record["rank"] for record in records] == [0, 1, 2]
    assert (np.asarray(Image.open(records[0]["image"])) == np.asarray(pairs[2].images[0].load())).all()
    assert records[2]["image"] is None
    assert search_records(hits)[0]["image"] is None
    assert search_records([]) == []


def test_the_table_has_one_line_per_hit(pairs: list[Document]) -> None:
    lines = search_table([Neighbor(pairs[0], 0.98765, 0), Neighbor(CODES, -0.5, 1)], width=60).splitlines()
    assert len(lines) == 3
    assert "0.988" in lines[1]
    assert pairs[0].id in lines[1]
    assert lines[2].endswith("…")
    assert max(map(len, lines)) <= 62


def test_the_grid_shows_every_picture(pairs: list[Document]) -> None:
    hits = [Neighbor(pair, 0.5, rank) for rank, pair in enumerate(pairs[:5])] + [Neighbor(CODES, 0.1, 5)]
    grid = picture_grid(hits, columns=3)
    assert grid.size == (480, 408)
    colors = {color for _, color in grid.getcolors(10**6)}
    assert set(np.asarray(pairs[0].images[0].load()).reshape(-1, 3).tolist()[0]) == {30, 220}
    assert (220, 30, 30) in colors
    with pytest.raises(InputError, match="nothing to draw"):
        picture_grid([])
