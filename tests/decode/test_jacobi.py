"""The same seed gives the same tokens: alone, in any batch, streamed, several tokens at a time, with and without a cache."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.core.errors import UsageError
from cm3.decode import DecodingEngine, FreeAnswer, ImageAnswer, Prompt, Request, Sampling, TextAnswer, cache, infilling
from cm3.decode.flight import Plan
from cm3.decode.jacobi import JacobiFlight
from cm3.decode.noise import gumbel_noise, picture_keys
from cm3.decode.rows import Rows
from cm3.decode.sampling import filtered
from cm3.decode.strategies.contrastive import Contrastive
from cm3.decode.strategies.guidance import Guidance
from cm3.decode.strategies.mixed import Mixed
from cm3.decode.strategies.plain import Plain
from cm3.model import create_model, preset
from cm3.sequences import mask_spans
from cm3.tokens import Span, Vocab, assemble

STRATEGIES = (Plain(), Guidance(3.0), Guidance(2.0, image_scale=1.5), Contrastive(k=3, alpha=0.3), Mixed(2.0, k=3))
SAMPLINGS = (Sampling(), Sampling(0.7, top_p=0.8), Sampling(0.5, top_k=5), Sampling(min_p=0.1), Sampling(0.0))
PENALIZED = Sampling(0.9, repetition_penalty=1.4)


def without_cache(model, vocab, request: Request, strategy, sampling: Sampling) -> list[int]:
    """The picture of one request by full forwards over ever longer rows, in the order of the definitions."""
    if hasattr(strategy, "for_picture"):
        strategy, sampling = strategy.for_picture(request.picture, sampling)
    ids: list[int] = []
    for place in range(vocab.num_image_tokens):
        logits = []
        for stream in strategy.streams(request.prompt):
            tokens = torch.tensor([[*stream.token_ids.tolist(), *ids]])
            grid = torch.tensor([[*stream.grid_positions.tolist(), *range(1, place + 1)]])
            with torch.inference_mode():
                logits.append(model(tokens, grid_positions=grid).logits[:, -1, vocab.image_start : vocab.image_stop])
        scores = strategy.combine(torch.stack(logits, dim=1))
        if sampling.temperature:
            noise = gumbel_noise(picture_keys([(request.seed, request.picture)]), place, 1, (0, vocab.size))[:, 0]
            scores = filtered(scores, sampling) + noise[:, vocab.image_start : vocab.image_stop]
        ids.append(int(scores.argmax()) + vocab.image_start)
    return ids


@pytest.fixture(scope="module")
def toy():
    """A vocabulary, a model of one layer and an engine so small that two hundred cases take seconds."""
    vocab = Vocab(text_size=8, codebook_size=16, grid_shape=(2, 3), num_masks=2)
    config = preset("tiny", vocab_size=vocab.size, hidden_size=16, num_hidden_layers=1, max_position_embeddings=48)
    model = create_model(config, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return vocab, model, DecodingEngine(model, vocab)


def prompt_of(vocab: Vocab, length: int) -> Prompt:
    ids = np.concatenate([[vocab.bos_id], vocab.text_start + np.arange(length), [vocab.break_id]])
    return Prompt(vocab, ids, np.zeros(len(ids), np.int64), (Span("text", 1, 1 + length),))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_same_seed_gives_the_same_tokens(toy, data) -> None:
    vocab, model, engine = toy
    strategy, sampling = data.draw(st.sampled_from(STRATEGIES)), data.draw(st.sampled_from(SAMPLINGS))
    plan = st.sampled_from([ImageAnswer(), ImageAnswer(), TextAnswer(3), FreeAnswer(9)])
    requests = [
        Request(prompt_of(vocab, data.draw(st.integers(1, 6))), data.draw(plan), data.draw(st.integers(0, 3)), index)
        for index in range(data.draw(st.sampled_from([1, 1, 2, 2, 3, 4, 8])))
    ]
    together = [answer.token_ids.tolist() for answer in engine.generate(requests, strategy, sampling)]
    window = data.draw(st.integers(2, 9))
    at_once = engine.generate(requests, strategy, sampling, data.draw(st.integers(1, 8)), window)
    assert [answer.token_ids.tolist() for answer in at_once] == together
    if len(requests) < 4:
        pieces: dict[int, list[int]] = {index: [] for index in range(len(requests))}
        for emission in engine.stream(requests, strategy, sampling, data.draw(st.integers(2, 5)), data.draw(st.integers(1, 4))):
            pieces[emission.request] += emission.token_ids
        assert list(pieces.values()) == together
    chosen = data.draw(st.integers(0, len(requests) - 1))
    [alone] = engine.generate([requests[chosen]], strategy, sampling)
    assert alone.token_ids.tolist() == together[chosen]
    if isinstance(requests[chosen].answer, ImageAnswer) and window % 3 == 0:
        assert without_cache(model, vocab, requests[chosen], strategy, sampling) == together[chosen]


@pytest.mark.parametrize("window", [2, 5, 16])
def test_a_repetition_penalty_sees_the_tokens_of_its_window(engine, caption, window: int) -> None:
    requests = [Request(caption(3, index), ImageAnswer(), 0, index) for index in range(3)]
    expected = [answer.token_ids.tolist() for answer in engine.generate(requests, Guidance(2.0), PENALIZED)]
    assert [a.token_ids.tolist() for a in engine.generate(requests, Guidance(2.0), PENALIZED, window=window)] == expected
    free = [answer.token_ids.tolist() for answer in engine.generate(requests, Guidance(2.0), Sampling(0.9))]
    assert sum(len(set(ids)) for ids in expected) > sum(len(set(ids)) for ids in free)


def test_gaps_and_shared_prompts(engine, vocab, caption, monkeypatch) -> None:
    monkeypatch.setattr(cache, "SHARE_FROM", 1)
    picture = vocab.image_start + np.arange(12)
    document = assemble([("text", np.array([vocab.text_start + 1])), ("image", picture)], vocab)
    first = document.spans[1].start
    prompt, answer = infilling(mask_spans(document, [(first + 1, first + 5), (first + 7, first + 11)], vocab), vocab)
    requests = [Request(prompt, answer, 3, index) for index in range(4)]
    requests += [Request(caption(7), ImageAnswer(), 3, index) for index in range(3)]
    expected = [generation.token_ids.tolist() for generation in engine.generate(requests, Guidance(2.0))]
    for window in (3, 20):
        found = engine.generate(requests, Guidance(2.0), window=window)
        assert [generation.token_ids.tolist() for generation in found] == expected


def test_requests_may_be_drawn_each_in_a_manner_of_its_own(engine, caption) -> None:
    manners = [(Plain(), Sampling(0.0)), (Guidance(3.0), Sampling()), (Contrastive(2), None), (None, None)]
    requests = [Request(caption(4, index), ImageAnswer(), 1, index, *manner) for index, manner in enumerate(manners)]
    together = engine.generate(requests, Guidance(2.0), Sampling(0.8))
    for request, (strategy, sampling), found in zip(requests, manners, together):
        plain = Request(request.prompt, request.answer, request.seed, request.picture)
        [alone] = engine.generate([plain], strategy or Guidance(2.0), sampling or Sampling(0.8))
        assert alone.token_ids.tolist() == found.token_ids.tolist()


def test_fewer_passes_where_tokens_are_easy_to_guess(model, vocab, caption) -> None:
    requests = [Request(caption(3), ImageAnswer(), 0, 0)]
    flight = JacobiFlight(Plan.of(requests, Plain(), Sampling(0.02)), model, vocab, window=12)
    while flight.walks:
        flight.turn(1 << 30)
    assert flight.passes < vocab.num_image_tokens - 1


def test_a_window_larger_than_the_picture_takes_no_more_room(engine, caption, monkeypatch) -> None:
    rooms = []

    def recorded(model, streams, room):
        rooms.append(room)
        return Rows(model, streams, room)

    monkeypatch.setattr("cm3.decode.flight.Rows", recorded)
    request = Request(caption(3), ImageAnswer())
    whole, larger = (engine.generate([request], window=window)[0].token_ids.tolist() for window in (12, 10_000))
    assert whole == larger
    assert rooms == [24, 24]


def test_a_window_without_room_is_refused(engine, caption) -> None:
    with pytest.raises(UsageError, match="window must be at least 1"):
        engine.generate([Request(caption(3), ImageAnswer())], window=0)
