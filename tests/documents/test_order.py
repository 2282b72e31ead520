"""The digest of documents in their order."""

from __future__ import annotations

import pytest

from cm3.documents.order import order_digest


@pytest.mark.parametrize("other", [["ab", "c"], ["c", "a", "b"], ["a", "b"], ["abc"], ["a", "b", "c", ""], []])
def test_other_documents_and_another_order_differ(other: list[str]) -> None:
    assert order_digest(iter(["a", "b", "c"])) == order_digest(["a", "b", "c"])
    assert order_digest(other) != order_digest(["a", "b", "c"])
