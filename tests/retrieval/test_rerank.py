"""Reranking scores pictures by their similarity to the text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cm3.core.protocols import Reranker
from cm3.documents.document import Document
from retrieval.encoders import load_encoder
from retrieval.rerank import CLIPReranker


def test_scores_are_cosine_similarities(clip_folder: Path, pairs: list[Document]) -> None:
    reranker = CLIPReranker.from_folder(clip_folder)
    assert isinstance(reranker, Reranker)
    images = [pair.images[0].load() for pair in pairs[:6]]
    scores = reranker.score(pairs[0].text, images)
    encoder = load_encoder(clip_folder)
    expected = encoder.encode_images(images) @ encoder.encode_texts([pairs[0].text])[0]
    assert scores.dtype == torch.float32
    assert np.allclose(scores.numpy(), expected, atol=1e-6)
    assert reranker.score("nothing", []).shape == (0,)
