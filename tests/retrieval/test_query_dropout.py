"""Query dropout removes about the share asked for, and never everything."""

from __future__ import annotations

import numpy as np
from PIL import Image

from retrieval.query_dropout import drop_cells, drop_words


def test_a_share_of_the_words_goes_and_the_order_stays() -> None:
    words = [f"w{number}" for number in range(4000)]
    kept = drop_words(" ".join(words), 0.2, np.random.default_rng(0)).split()
    assert 0.77 < len(kept) / len(words) < 0.83  # 4.7 standard deviations: 1 in 400,000
    assert kept == sorted(kept, key=lambda word: int(word[1:]))


def test_one_word_is_always_kept() -> None:
    rng = np.random.default_rng(1)
    assert all(drop_words("one two", 0.99, rng) for _ in range(50))
    assert drop_words("", 0.5, rng) == ""
    assert drop_words("as  it\nis", 0, rng) == "as  it\nis"


def test_a_share_of_the_cells_becomes_the_mean_color() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (80, 64, 3), np.uint8)
    shares = []
    for seed in range(30):
        dropped = np.asarray(drop_cells(Image.fromarray(pixels), 0.2, np.random.default_rng(seed)))
        assert dropped.shape == pixels.shape
        cells = (dropped != pixels).any(-1).reshape(8, 10, 8, 8).any((1, 3))
        shares.append(cells.mean())
        for row, column in np.argwhere(cells):
            assert len(np.unique(dropped[row * 10 : row * 10 + 10, column * 8 : column * 8 + 8].reshape(-1, 3), axis=0)) == 1
    assert 0.155 < np.mean(shares) < 0.245  # 4.9 standard deviations over 1,920 cells: 1 in a million


def test_tiny_pictures_and_rate_zero() -> None:
    tiny = Image.new("RGB", (1, 3), "red")
    assert drop_cells(tiny, 0.9, np.random.default_rng(0)).size == (1, 3)
    assert drop_cells(tiny, 0, np.random.default_rng(0)) is tiny
