"""Sequence probabilities against the chain rule, token by token."""

import numpy as np
import torch

from cm3.decode import sequence_log_prob
from cm3.tokens import assemble


def test_against_one_forward_per_document(model, vocab) -> None:
    rng = np.random.default_rng(0)
    documents = []
    for length in (3, 7, 1, 5):
        picture = vocab.image_start + rng.integers(0, 24, 12)
        text = rng.integers(vocab.text_start, vocab.text_stop, length)
        documents.append(assemble([("image", picture), ("text", text)], vocab, weights=[0.0, 1.0]))
    scores = sequence_log_prob(model, documents, batch_size=3)
    for document, score in zip(documents, scores):
        row, grid = (torch.from_numpy(part)[None] for part in (document.token_ids, document.grid_positions))
        log_probs = model(row, grid_positions=grid).logits[0].double().log_softmax(-1)
        expected = sum(
            log_probs[place - 1, document.token_ids[place]].item()
            for place in range(1, len(document))
            if document.loss_weights[place] > 0
        )
        assert abs(score.item() - expected) < 1e-3


def test_without_weights_it_is_zero(model, vocab) -> None:
    document = assemble([("text", np.array([vocab.text_start]))], vocab, weights=[0.0])
    assert sequence_log_prob(model, [document]).tolist() == [0.0]
