"""The contract of the protocol `DecodingStrategy`, which every registered strategy passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cm3.core.protocols import DecodingStrategy
from cm3.core.seeding import torch_generator
from cm3.decode.prompts import Prompt, continuation
from cm3.decode.strategies import STRATEGIES
from cm3.tokens import Vocab
from cm3.tokens.tokenized import assemble

VOCAB = Vocab(text_size=20, codebook_size=8, grid_shape=(2, 2))


def prompt() -> Prompt:
    text = np.arange(VOCAB.text_start, VOCAB.text_start + 3)
    document = assemble([("text", text), ("image", VOCAB.image_ids(np.arange(4)))], VOCAB, "asked")
    return continuation(document, VOCAB)


@pytest.fixture(params=STRATEGIES.names())
def strategy(request: pytest.FixtureRequest) -> DecodingStrategy:
    return STRATEGIES.get(request.param)()


def test_is_a_strategy(strategy: DecodingStrategy) -> None:
    assert isinstance(strategy, DecodingStrategy)


def test_the_conditional_stream_comes_first(strategy: DecodingStrategy) -> None:
    asked = prompt()
    streams = strategy.streams(asked)
    assert streams
    assert streams[0].token_ids.tolist() == asked.token_ids.tolist()
    for stream in streams:
        assert stream.token_ids[0] == VOCAB.bos_id
        assert len(stream.token_ids) == len(stream.grid_positions)


def test_logits_of_all_streams_become_one_distribution_per_row(strategy: DecodingStrategy) -> None:
    count = len(strategy.streams(prompt()))
    logits = torch.randn(5, count, VOCAB.size, generator=torch_generator(0, "strategy"))
    before = logits.clone()
    combined = strategy.combine(logits)
    assert combined.shape == (5, VOCAB.size)
    assert torch.isfinite(combined).any(dim=-1).all()
    assert not torch.isnan(combined).any()
    assert torch.equal(logits, before)
    rows = torch.cat([strategy.combine(logits[index : index + 1]) for index in range(5)])
    torch.testing.assert_close(combined, rows)


def test_streams_that_agree_keep_the_likeliest_token(strategy: DecodingStrategy) -> None:
    count = len(strategy.streams(prompt()))
    logits = torch.full((1, count, VOCAB.size), -5.0)
    logits[:, 0, 7] = 5.0  # only the condition asks for token 7
    assert int(strategy.combine(logits).argmax()) == 7
