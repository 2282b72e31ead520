"""A small model with strong random weights, so that logits differ clearly from token to token."""

import numpy as np
import pytest
import torch

from cm3.decode import DecodingEngine, Prompt
from cm3.model import CM3ForCausalLM, create_model, preset
from cm3.tokens import Span, Vocab


@pytest.fixture(scope="session")
def vocab() -> Vocab:
    return Vocab(text_size=30, codebook_size=24, grid_shape=(3, 4), num_masks=4)


@pytest.fixture(scope="session")
def model(vocab: Vocab) -> CM3ForCausalLM:
    config = preset(
        "tiny",
        vocab_size=vocab.size,
        hidden_size=32,
        num_hidden_layers=2,
        grid_embedding=True,
        grid_shape=vocab.grid_shape,
        image_start=vocab.image_start,
        image_stop=vocab.image_stop,
        max_position_embeddings=128,
    )
    model = create_model(config, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture(scope="session")
def engine(model: CM3ForCausalLM, vocab: Vocab) -> DecodingEngine:
    return DecodingEngine(model, vocab)


@pytest.fixture(scope="session")
def caption(vocab: Vocab):
    """A prompt `<bos> text <break>` with `length` text tokens that depend on `seed`."""

    def make(length: int, seed: int = 0) -> Prompt:
        text = np.random.default_rng(seed).integers(vocab.text_start, vocab.text_stop, length)
        token_ids = np.concatenate([[vocab.bos_id], text, [vocab.break_id]])
        return Prompt(vocab, token_ids, np.zeros(len(token_ids), np.int64), (Span("text", 1, 1 + length),))

    return make
