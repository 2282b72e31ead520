"""A small model with strong random weights, so that logits differ clearly from token to token, and decoding by definition."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from cm3.decode import DecodingEngine, Prompt, Request, Sampling
from cm3.decode.grammar import RowWalk
from cm3.decode.noise import gumbel_noise, picture_keys
from cm3.decode.prompts import Stream
from cm3.decode.sampling import filtered, penalize
from cm3.model import CM3ForCausalLM, create_model, preset
from cm3.tokens import Span, Vocab

VARIANTS = {
    "ours": {"qk_norm": "shared", "grid_embedding": True},
    "cm3leon": {"position_embedding": "learned", "activation": "relu", "qk_norm": "none"},
    "chameleon": {"norm": "rmsnorm", "qk_norm": "per_head", "tie_word_embeddings": False},
    "grouped": {"num_key_value_heads": 2, "qk_norm": "per_head", "norm_placement": "post_branch"},
    "biased": {"attention_bias": True, "position_embedding": "none", "activation": "gelu", "grid_embedding": True},
}


@pytest.fixture(params=VARIANTS)
def variant(request) -> dict[str, object]:
    """Fields of `make_model`: every way a model can be built, one after the other."""
    return VARIANTS[request.param]


@pytest.fixture(scope="session")
def vocab() -> Vocab:
    return Vocab(text_size=30, codebook_size=24, grid_shape=(3, 4), num_masks=4)


@pytest.fixture(scope="session")
def make_model(randomize) -> Callable[..., CM3ForCausalLM]:
    """`make_model(vocab, …)`: a tiny model over the ids and the grid of `vocab`; further fields as the test gives them."""

    def make(vocab: Vocab, **fields: object) -> CM3ForCausalLM:
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 128, **fields}
        config = preset(
            "tiny", vocab_size=vocab.size, grid_shape=vocab.grid_shape, image_start=vocab.image_start,
            image_stop=vocab.image_stop, **shape,
        )  # fmt: skip
        return randomize(create_model(config, seed=0).eval(), 1)

    return make


@pytest.fixture(scope="session")
def model(vocab: Vocab, make_model) -> CM3ForCausalLM:
    return make_model(vocab, grid_embedding=True)


@pytest.fixture(scope="session")
def engine(model: CM3ForCausalLM, vocab: Vocab) -> DecodingEngine:
    return DecodingEngine(model, vocab)


@pytest.fixture(scope="session")
def caption_of() -> Callable[..., Prompt]:
    """`caption_of(vocab, length, seed)`: a prompt `<bos> text <break>` with `length` text tokens that depend on `seed`."""

    def make(vocab: Vocab, length: int, seed: int = 0) -> Prompt:
        text = np.random.default_rng(seed).integers(vocab.text_start, vocab.text_stop, length)
        token_ids = np.concatenate([[vocab.bos_id], text, [vocab.break_id]])
        return Prompt(vocab, token_ids, np.zeros(len(token_ids), np.int64), (Span("text", 1, 1 + length),))

    return make


@pytest.fixture(scope="session")
def caption(vocab: Vocab, caption_of) -> Callable[..., Prompt]:
    """`caption(length, seed)`: the same in the vocabulary of the model."""
    return lambda length, seed=0: caption_of(vocab, length, seed)


@pytest.fixture(scope="session")
def whole() -> Callable[..., torch.Tensor]:
    """`whole(model, stream, drawn, places)`: hidden states (T, D) of a stream and tokens behind it, in one forward, no cache."""

    @torch.inference_mode()
    def run(model: CM3ForCausalLM, stream: Stream, drawn: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([[*stream.token_ids.tolist(), *drawn]])
        grid = torch.tensor([[*stream.grid_positions.tolist(), *places]])
        return model.model(ids, grid_positions=grid).last_hidden_state[0]

    return run


@pytest.fixture(scope="session")
def by_definition(whole) -> Callable[..., list[int]]:
    """`by_definition(model, vocab, request, strategy, sampling)`: the answer to one request, without cache, batch or window.

    Every token by full forwards over ever longer rows; what is not legal is left out instead of masked.
    """

    @torch.inference_mode()
    def decode(model: CM3ForCausalLM, vocab: Vocab, request: Request, strategy: object, sampling: Sampling) -> list[int]:
        if hasattr(strategy, "for_picture"):
            strategy, sampling = strategy.for_picture(request.picture, sampling)
        walk, ids, places = RowWalk(request.answer, vocab), [], []
        key = picture_keys([(request.seed, request.picture)])
        while not walk.done:
            legal = torch.tensor([id_ for start, stop in walk.allowed for id_ in range(start, stop)])
            streams = strategy.streams(request.prompt)
            logits = [model.lm_head(whole(model, stream, ids, places)[-1])[legal] for stream in streams]
            scores = strategy.combine(torch.stack(logits)[None])
            seen = torch.isin(legal, torch.tensor([*request.prompt.token_ids.tolist(), *ids]))
            scores = penalize(scores, seen[None], sampling.repetition_penalty)
            if sampling.temperature:
                scores = filtered(scores, sampling) + gumbel_noise(key, len(ids), 1, (0, vocab.size))[:, 0, legal]
            token = int(legal[scores.argmax()])
            ids.append(token)
            places.append(walk.grid_positions(1)[0] if vocab.is_image(token) else 0)
            walk.advance([token])
        return ids

    return decode
