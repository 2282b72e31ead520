"""A small vocabulary and ways to make documents in which every token can be told from every other."""

import numpy as np
import pytest

from cm3.tokens import TokenizedDocument, Vocab, assemble

VOCAB = Vocab(text_size=500, codebook_size=300, grid_shape=(3, 4), num_masks=16)


@pytest.fixture(scope="session")
def vocab() -> Vocab:
    return VOCAB


def make_document(kinds: str, seed: int = 0, id: str = "d") -> TokenizedDocument:
    """One segment per letter of `kinds`: "t" a text of 1–12 ids, "i" a picture; weights and ids are all different."""
    rng = np.random.default_rng(seed)
    segments = []
    for kind in kinds:
        if kind == "t":
            segments.append(
                ("text", rng.choice(np.arange(VOCAB.text_start, VOCAB.text_stop), rng.integers(1, 13), replace=False))
            )
        else:
            segments.append(("image", VOCAB.image_ids(rng.choice(VOCAB.codebook_size, VOCAB.num_image_tokens, replace=False))))
    document = assemble(segments, VOCAB, id)
    document.loss_weights[:] = rng.permutation(np.arange(1, len(document) + 1)).astype(np.float32)
    return document


@pytest.fixture(scope="session")
def make():
    return make_document


@pytest.fixture(scope="session")
def corpus() -> list[TokenizedDocument]:
    """200 documents of all shapes, each with its own id."""
    shapes = ["ti", "t", "it", "titi", "i", "ttt"]
    return [make_document(shapes[n % len(shapes)], n, str(n)) for n in range(200)]
