"""The held-out split: by id alone, in the stated proportion."""

from __future__ import annotations

import math

import pytest

from cm3.core.errors import UsageError
from cm3.documents import Document, TextSegment, is_held_out, split_documents

DOCUMENTS = [Document(f"picture-{number}", (TextSegment("x"),)) for number in range(4000)]


def test_proportion_order_and_completeness() -> None:
    train, held_out = split_documents(DOCUMENTS, 0.2, seed=3)
    chosen = {document.id for document in held_out}
    assert train == [document for document in DOCUMENTS if document.id not in chosen]
    assert held_out == [document for document in DOCUMENTS if document.id in chosen]
    # binomial(4000, 0.2): 5 standard deviations, a false failure has probability below 1e-6
    assert abs(len(held_out) - 800) < 5 * math.sqrt(4000 * 0.2 * 0.8)


def test_depends_on_the_id_and_the_seed_only() -> None:
    _, all_held_out = split_documents(DOCUMENTS, 0.1, seed=1)
    _, few_held_out = split_documents(reversed(DOCUMENTS[:500]), 0.1, seed=1)
    first_ids = {document.id for document in DOCUMENTS[:500]}
    assert {document.id for document in few_held_out} == {document.id for document in all_held_out} & first_ids
    assert all_held_out != split_documents(DOCUMENTS, 0.1, seed=2)[1]
    more = split_documents(DOCUMENTS, 0.3, seed=1)[1]
    assert {document.id for document in all_held_out} < {document.id for document in more}


def test_captions_of_one_picture_stay_together() -> None:
    for number in range(200):
        name = f"p{number}"
        assert is_held_out(name, 0.5, 0) == is_held_out(f"{name}#2", 0.5, 0) == is_held_out(f"{name}#31", 0.5, 0)
    assert len({is_held_out(f"#{number}", 0.5, 0) for number in range(50)}) == 2


def test_extremes_and_wrong_fractions() -> None:
    assert split_documents(DOCUMENTS[:9], 0, seed=0)[1] == []
    assert split_documents(DOCUMENTS[:9], 1, seed=0)[0] == []
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="fraction"):
            split_documents(DOCUMENTS, fraction, seed=0)
