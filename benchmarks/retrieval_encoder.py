"""A small encoder trained here: pictures by texts and texts by pictures on held-out pairs, beside chance and beside tf-idf.

The pairs are those of `CM3_BENCH_DATA` (by default of the embedded world), a tenth of them held out by id, at most 256 counted.
`CM3_BENCH_ENCODER` with `CM3_BENCH_HELD_OUT` takes a trained one and the pairs that were kept from it. tf-idf sees captions
only, so it competes where a caption asks: a fifth of its words dropped, find its document. `ours` is the encoder, `peer` chance
or tf-idf.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

import retrieval
from benchmarks.measure import Row, report
from benchmarks.retrieval_indexes import documents
from cm3.core.seeding import numpy_generator
from cm3.documents.document import Document
from cm3.documents.readers import read_documents
from cm3.documents.split import split_documents
from retrieval.config import TrainEncoderConfig
from retrieval.embedding import embed_documents
from retrieval.evaluation import evaluate_encoder
from retrieval.query_dropout import drop_words

STEPS = int(os.environ.get("CM3_BENCH_STEPS", "60"))
HELD_OUT, DROPPED = 256, 0.2
_WORD = re.compile(r"\w+")


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)
    training, held_out = pairs()
    held_out = [document for document in held_out if document.text.strip() and document.images][:HELD_OUT]
    with tempfile.TemporaryDirectory() as name:
        train = {"steps": STEPS, "optimizer": "muon", "learning_rate": 3e-3, "checkpoint_every": 0, "betas": (0.9, 0.98)}
        config = TrainEncoderConfig.model_validate(
            {"held_out_fraction": 0.0, "train": {**train, "warmup_steps": 10, "schedule": "wsd", "decay_fraction": 0.5}}
        )
        given = os.environ.get("CM3_BENCH_ENCODER")
        encoder = retrieval.load_encoder(given or retrieval.train_encoder(training, Path(name) / "encoder", config).path)
        figures = evaluate_encoder(encoder, held_out, HELD_OUT)
        for direction in ("text_to_image", "image_to_text"):
            for k in (1, 5, 10):
                yield shares(f"{direction}, recall@{k} of {len(held_out)}, vs chance", figures[f"{direction}/recall_at_{k}"],
                             figures[f"chance_at_{k}"])  # fmt: skip
        rng = numpy_generator(0, "asked")
        asked = [drop_words(document.text, DROPPED, rng) for document in held_out]
        same = same_text(held_out)
        by_encoder = encoder.encode_texts(asked) @ embed_documents(held_out, encoder).T
        by_words = tf_idf(asked, [document.text for document in held_out])
        for k in (1, 5, 10):
            found = recall(by_encoder, same, k), recall(by_words, same, k)
            yield shares(f"self-retrieval by 80 % of the caption, recall@{k}, vs tf-idf", *found)


def pairs() -> tuple[list[Document], list[Document]]:
    """Training and held-out pairs; a given encoder comes with the pairs that were kept from it."""
    if kept := os.environ.get("CM3_BENCH_HELD_OUT"):
        return [], list(read_documents(kept))
    return split_documents(documents(), 0.1, 0)


def shares(name: str, ours: float, peer: float) -> Row:
    ratio = round(ours / peer, 3) if peer else math.inf
    return Row(row=name, ours=round(ours, 4), peer=round(peer, 4), ratio=ratio, unit="share", limit_fraction=None, gate="ok")


def same_text(items: Sequence[Document]) -> np.ndarray:
    """(N, N) bool: documents that say the same count as each other."""
    texts = np.array([document.text for document in items], object)
    return texts[:, None] == texts


def recall(scores: np.ndarray, right: np.ndarray, k: int) -> float:
    """Share of rows whose k best hold a right one; equal scores count against it."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return float((((scores >= best) & ~right).sum(axis=1) < k).mean())


def tf_idf(queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Cosines (Q, N) of bags of words weighted by log(N / documents with the word)."""
    counts = Counter(word for text in texts for word in set(_WORD.findall(text.lower())))
    column = {word: number for number, word in enumerate(sorted(counts))}
    weights = np.array([math.log(len(texts) / counts[word]) + 1e-6 for word in sorted(counts)])

    def vectors(items: Sequence[str]) -> np.ndarray:
        bags = np.zeros((len(items), len(column)))
        for row, text in enumerate(items):
            for word in _WORD.findall(text.lower()):
                if word in column:
                    bags[row, column[word]] += 1
        bags *= weights
        return bags / np.maximum(np.linalg.norm(bags, axis=1, keepdims=True), 1e-12)

    return vectors(queries) @ vectors(texts).T


if __name__ == "__main__":
    report(rows, __doc__ or "")
