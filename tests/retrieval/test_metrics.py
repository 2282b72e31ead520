"""Recall among pairs, with shared texts and pictures counted as right, and ties as misses."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.metrics import recall_metrics


def test_perfect_vectors_find_everything() -> None:
    vectors, keys = np.eye(4, dtype=np.float32), np.arange(4)
    figures = recall_metrics(vectors, vectors, keys, keys)
    assert figures["image_to_text/recall_at_1"] == figures["text_to_image/mrr"] == 1
    assert figures["chance_at_1"] == 0.25
    assert figures["chance_at_10"] == 1


def test_known_ranks() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 0, 0], [0.8, 0.6, 0], [0, 0.9, 0.4]], np.float32)  # picture 1 prefers text 2
    keys = np.arange(3)
    figures = recall_metrics(images, texts, keys, keys, at=(1, 2))
    assert figures["image_to_text/recall_at_1"] == pytest.approx(2 / 3)
    assert figures["image_to_text/mrr"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert figures["text_to_image/recall_at_1"] == pytest.approx(1 / 3)
    assert figures["text_to_image/recall_at_2"] == 1


def test_a_shared_text_is_right_for_both_pictures() -> None:
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    assert recall_metrics(images, texts, np.arange(3), np.array([5, 5, 6]))["image_to_text/recall_at_1"] == pytest.approx(2 / 3)


def test_a_constant_encoder_scores_nothing() -> None:
    constant = np.ones((4, 2), np.float32)
    assert recall_metrics(constant, constant, np.arange(4), np.arange(4))["text_to_image/recall_at_1"] == 0
