"""The engine against the model without cache, against itself alone, and against transformers' generate."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from cm3.core.errors import InputError, UsageError
from cm3.decode import (
    GREEDY,
    DecodingEngine,
    FreeAnswer,
    ImageAnswer,
    Prompt,
    Request,
    Sampling,
    TextAnswer,
    cache,
    codes_of,
    continuation,
    document_start,
    fill,
    infilling,
    unconditional_image,
)
from cm3.decode.flight import Flight, Plan
from cm3.decode.memory import USABLE, prefill_bytes, request_bytes
from cm3.decode.rows import Rows
from cm3.decode.strategies.contrastive import Contrastive
from cm3.decode.strategies.guidance import Guidance
from cm3.decode.strategies.mixed import Mixed
from cm3.decode.strategies.plain import Plain
from cm3.sequences import mask_spans, restore
from cm3.tokens import assemble

STRATEGIES = [
    Plain(),
    Guidance(3.0),
    Guidance(3.0, image_scale=1.5),
    Contrastive(k=3, alpha=0.3),
    Mixed(2.0, k=3, alpha=0.3),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: repr(strategy)[:24])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pictures_equal_the_definition(engine, model, vocab, caption, by_definition, strategy, temperature: float) -> None:
    sampling = Sampling(temperature)
    requests = [Request(caption(length, length), ImageAnswer(), 5, length) for length in (3, 9, 6)]
    for request, generation in zip(requests, engine.generate(requests, strategy, sampling)):
        assert generation.token_ids.tolist() == by_definition(model, vocab, request, strategy, sampling)
        assert codes_of(generation, vocab).shape == vocab.grid_shape


@pytest.fixture
def edit(vocab) -> Prompt:
    """`<bos> picture <break> text <break>`, as the instruction for an edit is put."""
    picture = ("image", vocab.image_start + np.arange(12))
    document = assemble([picture, ("text", vocab.text_start + np.arange(5))], vocab)
    document.token_ids[-1] = vocab.break_id
    return continuation(document, vocab)


@pytest.mark.parametrize("layout", ["together", "shared"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: repr(strategy)[:24])
def test_cached_logits_equal_uncached(model, vocab, caption, edit, whole, strategy, layout: str, monkeypatch) -> None:
    monkeypatch.setattr(cache, "SHARE_FROM", 1 if layout == "shared" else 1000)
    prompts = [caption(3, 1), caption(8, 2), caption(8, 2), edit]
    plan = Plan.of([Request(prompt, ImageAnswer(), 0, index) for index, prompt in enumerate(prompts)], strategy, Sampling())
    rows = Rows(model, plan.streams, room=12)
    counts = [len(streams) for streams in plan.streams]
    drawn = vocab.image_start + torch.randint(0, 24, (4, 12), generator=torch.Generator().manual_seed(0))
    for step in range(12):
        with torch.inference_mode():
            cached = model.project(rows.hidden()).split(counts)
        for index, (logits, streams, tokens) in enumerate(zip(cached, plan.streams, drawn[:, :step].tolist())):
            last = torch.stack([whole(model, stream, tokens, range(1, step + 1))[-1] for stream in streams])
            uncached = model.lm_head(last)
            torch.testing.assert_close(logits, uncached, atol=1e-5, rtol=1e-5)
            combine = plan.manners[index].strategy.combine
            joined, expected = (combine(of_rows[list(plan.sources[index])][None]) for of_rows in (logits, uncached))
            torch.testing.assert_close(joined, expected, atol=1e-4, rtol=1e-5)  # scales multiply what rounding leaves
        rows.feed(drawn[:, step], torch.full((4,), step + 1))


def test_pictures_of_one_prompt_differ_and_are_independent_of_how_many(engine, caption) -> None:
    prompt = caption(4)
    four = engine.generate([Request(prompt, ImageAnswer(), 1, index) for index in range(4)])
    one = engine.generate([Request(prompt, ImageAnswer(), 1, 0)])[0]
    assert four[0].token_ids.tolist() == one.token_ids.tolist()
    assert len({tuple(answer.token_ids) for answer in four}) == 4
    other_seed = engine.generate([Request(prompt, ImageAnswer(), 2, 0)])[0]
    assert other_seed.token_ids.tolist() != one.token_ids.tolist()


def test_equal_streams_are_one_row(engine, vocab, caption, monkeypatch) -> None:
    counts = []
    monkeypatch.setattr(
        "cm3.decode.flight.Rows", lambda m, streams, *rest: counts.append(list(map(len, streams))) or Rows(m, streams, *rest)
    )
    anything = [Request(unconditional_image(vocab), ImageAnswer(), 0, index) for index in range(2)]
    plain = [answer.token_ids.tolist() for answer in engine.generate(anything)]
    assert [answer.token_ids.tolist() for answer in engine.generate(anything, Guidance(3.0))] == plain
    mixed = engine.generate([*anything, Request(caption(4), ImageAnswer(), 0, 2)], Guidance(3.0, image_scale=2.0), window=3)
    assert [answer.token_ids.tolist() for answer in mixed[:2]] == plain
    assert counts == [[1, 1], [1, 1], [1, 1, 2]]  # a caption without text is the unconditional stream


def test_a_batch_of_nothing_is_refused(engine, caption) -> None:
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        engine.generate([Request(caption(4), ImageAnswer())], batch_size=0)


def test_guidance_of_one_is_the_conditional_stream(engine, caption) -> None:
    requests = [Request(caption(5, index), ImageAnswer(), 0, index) for index in range(3)]
    plain, guided = engine.generate(requests), engine.generate(requests, Guidance(1.0))
    assert [answer.token_ids.tolist() for answer in plain] == [answer.token_ids.tolist() for answer in guided]
    strong = engine.generate(requests, Guidance(4.0))
    assert [answer.token_ids.tolist() for answer in plain] != [answer.token_ids.tolist() for answer in strong]


def test_greedy_text_equals_transformers_generate(engine, model, vocab, caption) -> None:
    prompt = caption(6)
    ours = engine.generate([Request(prompt, TextAnswer(20))], sampling=GREEDY)[0].token_ids.tolist()
    legal = list(range(vocab.text_start, vocab.text_stop))

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        return legal if len(ids) == len(prompt.token_ids) else [*legal, vocab.eos_id, vocab.break_id]

    row = torch.from_numpy(prompt.token_ids)[None]
    theirs = model.generate(
        row,
        attention_mask=torch.ones_like(row),
        max_new_tokens=20,
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
        eos_token_id=[vocab.eos_id, vocab.break_id],
        pad_token_id=vocab.pad_id,
    )
    assert theirs[0, len(prompt.token_ids) :].tolist() == ours


def test_infill_changes_nothing_but_the_gaps(engine, vocab) -> None:
    rng = np.random.default_rng(0)
    picture = vocab.image_start + rng.integers(0, 24, 12)
    document = assemble([("text", np.array([vocab.text_start + 1])), ("image", picture)], vocab)
    first = document.spans[1].start
    gaps = [(first + 1, first + 3), (first + 5, first + 7)]
    masked = mask_spans(document, gaps, vocab)
    prompt, answer = infilling(masked, vocab)
    for strategy in (Plain(), Guidance(2.0), Contrastive(k=5)):  # k is more than the legal ids of a forced token
        requests = [Request(prompt, answer, 3, index) for index in range(4)]
        results = [
            restore(fill(masked, generation.token_ids, vocab), vocab) for generation in engine.generate(requests, strategy)
        ]
        inside = np.zeros(len(document), bool)
        for start, stop in gaps:
            inside[start:stop] = True
        for result in results:
            assert np.array_equal(result[~inside], document.token_ids[~inside])
            assert vocab.is_image(result[inside]).all()
        assert len({tuple(result) for result in results}) > 1


def test_infill_tokens_are_fed_with_their_own_grid_positions(engine, model, vocab) -> None:
    picture = vocab.image_start + np.arange(12)
    document = assemble([("image", picture)], vocab)
    masked = mask_spans(document, [(4, 6), (8, 9)], vocab)
    prompt, answer = infilling(masked, vocab)
    generation = engine.generate([Request(prompt, answer)], sampling=GREEDY)[0]
    filled = torch.from_numpy(fill(masked, generation.token_ids, vocab))[None]
    logits = model(filled, grid_positions=torch.from_numpy(masked.grid_positions)[None]).logits[0]
    for place in range(len(prompt.token_ids), len(masked) - 2):
        if vocab.is_image(int(filled[0, place])):
            assert logits[place - 1, vocab.image_start :].argmax() + vocab.image_start == filled[0, place]


def test_text_and_picture_rows_in_one_batch_obey_their_grammars(engine, vocab, caption) -> None:
    requests = [
        Request(caption(4), ImageAnswer(), 0, 0),
        Request(caption(7), TextAnswer(5), 0, 1),
        Request(document_start(vocab), FreeAnswer(40, max_images=2), 0, 2),
        Request(unconditional_image(vocab), ImageAnswer(), 0, 3),
    ]
    image, text, free, blank = engine.generate(requests)
    assert vocab.is_image(image.token_ids).all()
    assert vocab.is_image(blank.token_ids).all()
    assert vocab.is_text(text.token_ids[:-1]).all()
    assert not np.isin(free.token_ids, [vocab.pad_id, vocab.bos_id, vocab.eoss_id]).any()


def test_stream_gives_the_same_tokens_in_pieces(engine, caption) -> None:
    requests = [Request(caption(4), ImageAnswer(), 0, index) for index in range(2)]
    whole = engine.generate(requests)
    pieces: dict[int, list[int]] = {0: [], 1: []}
    emissions = list(engine.stream(requests, longest_emission=5))
    for emission in emissions:
        assert len(emission.token_ids) <= 5
        pieces[emission.request] += emission.token_ids
    assert [pieces[0], pieces[1]] == [answer.token_ids.tolist() for answer in whole]
    assert [emission.reason for emission in emissions] == [None] * 4 + ["stop"] * 2


def test_without_requests_there_is_nothing(engine) -> None:
    assert engine.generate([]) == []


def test_a_prompt_longer_than_the_context_is_refused(engine, caption) -> None:
    with pytest.raises(InputError, match="do not fit the model's context of 128"):
        engine.generate([Request(caption(120), ImageAnswer())])


def test_memory_is_estimated_for_the_window_and_for_what_is_streamed_together(engine, model, caption, monkeypatch) -> None:
    requests = [Request(caption(4), ImageAnswer(), 0, index) for index in range(3)]
    one, wide = (request_bytes(model.config, torch.float32, 1, 6, 12, window) for window in (1, 12))
    beside = prefill_bytes(model.config, torch.float32, 3, 6)
    assert wide > 2 * one
    monkeypatch.setattr("cm3.decode.engine.available_memory", lambda device: int((2 * one + beside) / USABLE) + 1)
    flights = []
    monkeypatch.setattr("cm3.decode.engine.Flight", lambda plan, *rest: flights.append(len(plan.requests)) or Flight(plan, *rest))
    assert len(engine.generate(requests)) == 3
    assert flights == [2, 1]  # no more at once than memory holds
    with pytest.raises(UsageError, match=r"of one answer need .*\(window\)"):
        engine.generate(requests, window=12)
    assert list(engine.stream(requests[:2]))
    with pytest.raises(UsageError, match="of all answers need .* ask for fewer or shorter"):
        list(engine.stream(requests))


_GROWTH = """
import numpy as np

from cm3.decode import DecodingEngine, ImageAnswer, Prompt, Request, Sampling
from cm3.decode.flight import Plan
from cm3.decode.strategies.plain import Plain
from cm3.model import create_model, preset
from cm3.tokens import Vocab

vocab = Vocab(text_size=30, codebook_size=24, grid_shape=(3, 4), num_masks=4)
shape = {"hidden_size": 128, "num_hidden_layers": 8, "max_position_embeddings": 1024}
engine = DecodingEngine(create_model(preset("tiny", vocab_size=vocab.size, **shape), 0), vocab)


def asked(count, length):
    ids = np.random.default_rng(0).integers(vocab.text_start, vocab.text_stop, (count, length))
    return [Request(Prompt(vocab, row, np.zeros(length, np.int64)), ImageAnswer()) for row in ids]


def peak():  # of this program: ru_maxrss begins with that of the process that started it
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


engine.generate(asked(1, 4))
before, requests = peak(), asked(24, 600)
engine.generate(requests)
print(peak() - before, sum(engine._needed(Plan.of(requests, Plain(), Sampling()), 1)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux")
def test_the_estimate_counts_the_prefill_of_long_prompts() -> None:
    said = subprocess.run([sys.executable, "-c", _GROWTH], capture_output=True, text=True, check=True).stdout
    grown, estimated = (int(number) for number in said.split())
    assert estimated / 1.5 < grown < 1.5 * estimated


def test_unsupported_attention_is_refused(model, vocab) -> None:
    model.config._attn_implementation = "flex_attention"
    try:
        with pytest.raises(UsageError, match="flex_attention"):
            DecodingEngine(model, vocab)
    finally:
        model.config._attn_implementation = "sdpa"


def test_eager_attention_gives_the_same(model, vocab, caption, engine) -> None:
    requests = [Request(caption(length), ImageAnswer(), 0, length) for length in (2, 5)]
    expected = [answer.token_ids.tolist() for answer in engine.generate(requests)]
    model.config._attn_implementation = "eager"
    try:
        assert [answer.token_ids.tolist() for answer in engine.generate(requests)] == expected
    finally:
        model.config._attn_implementation = "sdpa"


def test_a_prompt_is_not_changed(engine, vocab, caption) -> None:
    prompt: Prompt = caption(4)
    before = prompt.token_ids.copy()
    engine.generate([Request(prompt, ImageAnswer())], Guidance(2.0))
    assert np.array_equal(prompt.token_ids, before)
