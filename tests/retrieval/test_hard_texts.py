"""Hard texts change one word into another that the corpus has in that place."""

from __future__ import annotations

import numpy as np

from retrieval.hard_texts import WordExchange

CORPUS = [
    f"a {color} {shape} at the {place}, alone"
    for color in ("red", "blue")
    for shape in ("disk", "cube")
    for place in ("top", "left")
]


def changed(before: str, after: str) -> list[tuple[str, str]]:
    return [(a, b) for a, b in zip(before.split(), after.split(), strict=True) if a != b]


def test_exactly_one_word_becomes_one_of_its_rivals() -> None:
    exchange, rng = WordExchange(CORPUS, min_count=2), np.random.default_rng(0)
    seen = set()
    for _ in range(200):
        [(old, new)] = changed("a red disk at the top, alone", exchange.draw("A red disk at the top, alone", rng))
        seen.add((old, new))
    # a place is what stands beside it: between "a" and "disk" both colors occur, and so on; the comma stays
    assert seen == {("red", "blue"), ("disk", "cube"), ("top,", "left,")}


def test_rare_words_are_not_offered() -> None:
    exchange = WordExchange([*CORPUS, "a rad disk at the top, alone"], min_count=2)
    rng = np.random.default_rng(1)
    assert not any("rad" in exchange.draw(CORPUS[0], rng) for _ in range(100))


def test_a_text_without_alternatives_comes_back_as_it_is() -> None:
    exchange, rng = WordExchange(CORPUS), np.random.default_rng(2)
    assert exchange.draw("Something Else", rng) == "Something Else"
    assert exchange.draw("", rng) == ""
