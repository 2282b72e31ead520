"""Evaluation of encoders and banks."""

from __future__ import annotations

from pathlib import Path

import pytest

import retrieval
from cm3.core.errors import InputError
from cm3.documents.document import Document, TextSegment
from cm3.documents.writers import write_documents


def test_a_bank_and_its_encoder(clip_bank: Path, pairs: list[Document], tmp_path: Path) -> None:
    write_documents(pairs, tmp_path / "data")
    figures = retrieval.evaluate(clip_bank, tmp_path / "data", limit=20)
    assert figures["pairs"] == 20
    assert figures["documents"] == 48
    assert figures["self_retrieval"] == figures["index_recall"] == 1
    assert figures["chance_at_5"] == 0.25
    assert figures["latency_ms"] > 0
    assert figures["search_memory_bytes"] > 48 * 24 * 4
    assert figures["bytes_per_vector"] == pytest.approx(24 * 4 + 128 / 48)


def test_an_encoder_alone(clip_folder: Path, pairs: list[Document]) -> None:
    figures = retrieval.evaluate(clip_folder, [*pairs, Document("t", (TextSegment("no pair"),))])
    assert figures["pairs"] == 48
    assert "documents" not in figures
    assert 0 <= figures["image_to_text/recall_at_1"] <= figures["image_to_text/recall_at_10"] <= 1


def test_fewer_than_two_pairs_are_an_input_error(clip_folder: Path, pairs: list[Document]) -> None:
    with pytest.raises(InputError, match="at least 2 pairs"):
        retrieval.evaluate(clip_folder, pairs[:1])
