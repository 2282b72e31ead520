"""The same seed gives the same tokens: alone, in any batch, streamed, several tokens at a time, with and without a cache."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.core.errors import UsageError
from cm3.decode import DecodingEngine, FreeAnswer, ImageAnswer, Request, Sampling, TextAnswer, cache, infilling
from cm3.decode.flight import Plan
from cm3.decode.jacobi import JacobiFlight
from cm3.decode.rows import Rows
from cm3.decode.strategies.contrastive import Contrastive
from cm3.decode.strategies.guidance import Guidance
from cm3.decode.strategies.mixed import Mixed
from cm3.decode.strategies.plain import Plain
from cm3.sequences import mask_spans
from cm3.tokens import Vocab, assemble

STRATEGIES = (Plain(), Guidance(3.0), Guidance(2.0, image_scale=1.5), Contrastive(k=3, alpha=0.3), Mixed(2.0, k=3))
PENALIZED = Sampling(0.9, repetition_penalty=1.4)
SAMPLINGS = (Sampling(), Sampling(0.7, top_p=0.8), Sampling(0.5, top_k=5), Sampling(min_p=0.1), Sampling(0.0), PENALIZED)


ANSWERS = (ImageAnswer(), ImageAnswer(), TextAnswer(3), FreeAnswer(9))


@pytest.fixture(scope="module")
def toy(make_model):
    """A vocabulary, a model of one layer and an engine so small that two hundred cases take seconds."""
    vocab = Vocab(text_size=8, codebook_size=16, grid_shape=(2, 3), num_masks=2)
    model = make_model(vocab, hidden_size=16, num_hidden_layers=1, max_position_embeddings=48, grid_embedding=True)
    return vocab, model, DecodingEngine(model, vocab)


def streamed(engine: DecodingEngine, requests, strategy, sampling: Sampling, longest: int, window: int) -> list[list[int]]:
    """The tokens of `engine.stream`, put together."""
    pieces: list[list[int]] = [[] for _ in requests]
    for emission in engine.stream(requests, strategy, sampling, longest, window):
        assert len(emission.token_ids) <= longest
        pieces[emission.request] += emission.token_ids
    return pieces


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_same_seed_gives_the_same_tokens(toy, caption_of, by_definition, data) -> None:
    vocab, model, engine = toy
    strategy, sampling = data.draw(st.sampled_from(STRATEGIES)), data.draw(st.sampled_from(SAMPLINGS))
    made = st.tuples(st.integers(1, 6), st.sampled_from(ANSWERS), st.integers(0, 3))
    drawn = [data.draw(made) for _ in range(data.draw(st.sampled_from([1, 2, 2, 3, 4, 5, 6, 7, 8])))]
    requests = [Request(caption_of(vocab, length), answer, seed, index) for index, (length, answer, seed) in enumerate(drawn)]
    window = st.sampled_from([1, data.draw(st.integers(2, 9))])
    together = [answer.token_ids.tolist() for answer in engine.generate(requests, strategy, sampling)]
    assert streamed(engine, requests, strategy, sampling, data.draw(st.integers(1, 5)), data.draw(window)) == together
    chosen, company = data.draw(st.integers(0, len(requests) - 1)), data.draw(st.integers(1, 3))
    others = engine.generate(requests[chosen : chosen + company], strategy, sampling, window=data.draw(window))
    assert [answer.token_ids.tolist() for answer in others] == together[chosen : chosen + company]
    assert by_definition(model, vocab, requests[chosen], strategy, sampling) == together[chosen]


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

    def recorded(model, streams, room, recorders):
        rooms.append(room)
        return Rows(model, streams, room, recorders)

    monkeypatch.setattr("cm3.decode.flight.Rows", recorded)
    request = Request(caption(3), ImageAnswer())
    whole, larger = (engine.generate([request], window=window)[0].token_ids.tolist() for window in (12, 10_000))
    assert whole == larger
    assert rooms == [24, 24]


def test_a_window_without_room_is_refused(engine, caption) -> None:
    with pytest.raises(UsageError, match="window must be at least 1"):
        engine.generate([Request(caption(3), ImageAnswer())], window=0)
