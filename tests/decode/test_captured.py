"""Steps of fixed shapes: the tokens of steps that grow, in any strategy and layout, and nothing that a recording forbids."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cm3.decode import DecodingEngine, FreeAnswer, ImageAnswer, Request, Sampling, TextAnswer, cache
from cm3.decode.captured import Step, graphs_for
from cm3.decode.flight import Flight, Plan
from cm3.decode.jacobi import JacobiFlight
from cm3.decode.rows import Rows
from cm3.decode.strategies.contrastive import Contrastive
from cm3.decode.strategies.guidance import Guidance
from cm3.decode.strategies.mixed import Mixed
from cm3.decode.strategies.plain import Plain
from cm3.tokens import Vocab

STRATEGIES = (Plain(), Guidance(3.0), Guidance(2.0, image_scale=1.5), Contrastive(k=3, alpha=0.3), Mixed(2.0, k=3))
SAMPLING = Sampling(0.9, top_p=0.9, repetition_penalty=1.4)


class Replayed:
    """What stands for recording where there is no GPU: buffers of its own, overwritten by every call, as those of a graph."""

    def __init__(self, step: Step) -> None:
        self.step, self.calls, self.buffers = step, 0, ()

    def __call__(self, *given: Tensor) -> Tensor:
        if not self.calls:
            self.buffers = tuple(tensor.clone() for tensor in given)
            self.made = self.step(*given).clone()
        assert [tensor.shape for tensor in given] == [buffer.shape for buffer in self.buffers]
        self.calls += 1
        for buffer, tensor in zip(self.buffers, given):
            buffer.copy_(tensor)
        return self.made.copy_(self.step(*self.buffers))


@pytest.fixture
def steps() -> list[Replayed]:
    return []


@pytest.fixture
def recorders(steps) -> Callable[[], Callable[[Step], Step]]:
    """Recorders whose steps are noted in `steps`."""

    def record(step: Step) -> Step:
        steps.append(Replayed(step))
        return steps[-1]

    return lambda: record


@pytest.fixture(scope="module")
def larger(make_model):
    """A vocabulary whose pictures have 40 codes, a model and its engine."""
    vocab = Vocab(text_size=30, codebook_size=24, grid_shape=(5, 8), num_masks=4)
    model = make_model(vocab, grid_embedding=True)
    return vocab, model, DecodingEngine(model, vocab)


@pytest.fixture(params=["together", "shared"])
def layout(request, monkeypatch) -> None:
    """Both layouts of the cache, and steps that read as many slots as a small model may: 16, 32, 48 …"""
    monkeypatch.setattr(cache, "SHARE_FROM", 1 if request.param == "shared" else 1000)
    monkeypatch.setattr(cache, "_BYTES_PER_RECORDING", 1.0)


def decoded(flight: Flight | JacobiFlight, requests: int) -> list[list[int]]:
    tokens: list[list[int]] = [[] for _ in range(requests)]
    while flight.walks:
        for emission in flight.turn(1 << 30):
            tokens[emission.request] += emission.token_ids
    return tokens


@pytest.mark.usefixtures("layout")
def test_hidden_states_of_fixed_shapes(vocab, make_model, caption, recorders, steps, variant) -> None:
    model = make_model(vocab, **variant)
    long, short, blank = (caption(length, length).stream() for length in (9, 4, 1))
    streams = [[long, blank], [long, blank], [short, blank], [long]]
    growing, fixed = Rows(model, streams, 24), Rows(model, streams, 24, recorders)
    drawn = vocab.image_start + torch.randint(0, 24, (4, 24), generator=torch.Generator().manual_seed(0))
    kept = torch.arange(4)
    for step in range(20):
        if step == 12:
            kept = torch.tensor([3, 1, 0])
            growing.keep(kept.tolist())
            fixed.keep(kept.tolist())
        torch.testing.assert_close(fixed.hidden(), growing.hidden(), atol=1e-5, rtol=1e-5)
        for rows in (growing, fixed):
            rows.feed(drawn[kept, step], torch.full((len(kept),), step % 12 + 1))
    fed = torch.tensor([18, 11, 17])
    window = (drawn[kept, :3], torch.ones(3, 3, dtype=torch.int64), fed)
    torch.testing.assert_close(fixed.try_out(*window), growing.try_out(*window), atol=1e-5, rtol=1e-5)
    assert len(steps) <= 5  # a step for every 16 slots, before and behind the change, and the window


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: repr(strategy)[:24])
def test_the_same_tokens(larger, caption_of, recorders, steps, strategy) -> None:
    vocab, model, engine = larger
    answers = (ImageAnswer(), ImageAnswer(), TextAnswer(3), FreeAnswer(60), ImageAnswer())
    requests = [Request(caption_of(vocab, 3 + 2 * (i // 2)), answer, 5, i) for i, answer in enumerate(answers)]
    expected = [answer.token_ids.tolist() for answer in engine.generate(requests, strategy, SAMPLING)]
    plan = Plan.of(requests, strategy, SAMPLING)
    assert decoded(Flight(plan, model, vocab, 0, recorders), len(requests)) == expected
    assert max(step.calls for step in steps) > 8
    assert decoded(JacobiFlight(plan, model, vocab, 5, recorders), len(requests)) == expected


class NothingForbidden(TorchDispatchMode):
    """Fails on whatever a recording must not contain: values read by the host, shapes by values, numbers from the host."""

    VALUES = ("item", "_local_scalar_dense", "is_nonzero", "equal", "resolve_conj")  # the last by tolist()
    FORBIDDEN = (*VALUES, "nonzero", "masked_select", "unique", "lift_fresh")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(getattr(index, "dtype", None) == torch.bool for index in args[1])
        if name in self.FORBIDDEN or by_mask:
            self.found(name)
        return func(*args, **(kwargs or {}))

    def found(self, name: str) -> None:
        raise AssertionError(name)


@pytest.mark.usefixtures("layout")
def test_nothing_waits_for_the_device_inside_a_step(vocab, make_model, caption, variant) -> None:
    watched = []

    def record(step: Step) -> Step:
        def run(*given: Tensor) -> Tensor:
            watched.append(step)
            with NothingForbidden():
                return step(*given)

        return run

    model = make_model(vocab, **variant)
    requests = [Request(caption(4 + index), ImageAnswer(), 0, index) for index in range(3)]
    plan = Plan.of(requests, Guidance(2.0), Sampling())
    decoded(Flight(plan, model, vocab, 0, lambda: record), 3)
    decoded(JacobiFlight(plan, model, vocab, 4, lambda: record), 3)
    assert len(watched) > 12
    for forbidden in (lambda x: int(x[0]), lambda x: x.tolist(), lambda x: bool(x.any()), lambda x: x[x > 0], torch.tensor):
        with pytest.raises(AssertionError), torch.inference_mode(), NothingForbidden():
            forbidden(torch.ones(2) if forbidden is not torch.tensor else [1.0])


def test_a_picture_waits_for_the_device_at_its_end_alone(larger, caption_of, recorders, monkeypatch) -> None:
    vocab, model, _ = larger
    requests = [Request(caption_of(vocab, 4), ImageAnswer(), 0, index) for index in range(2)]
    flight = Flight(Plan.of(requests, Contrastive(k=3), Sampling(0.8, min_p=0.01)), model, vocab, 0, recorders)
    hidden, waited = flight.rows.hidden, []

    class Counting(NothingForbidden):
        def found(self, name: str) -> None:
            waited.append(name)

    monkeypatch.setattr(flight.rows, "hidden", lambda: waited.append(None) or hidden())
    with Counting():
        decoded(flight, 2)
    steps = [index for index, event in enumerate(waited) if event is None]
    assert len(steps) == steps[-1] - steps[0] + 1 == 40  # nothing between the first and the last


def test_memory_goes_when_the_rows_do(vocab, model, caption, recorders, steps) -> None:
    gc.disable()
    try:
        rows = Rows(model, [[caption(4).stream()]], 12, recorders)
        rows.feed(torch.tensor([vocab.image_start]), torch.tensor([1]))
        rows.hidden()
        kept = weakref.ref(rows._cache)
        steps.clear()
        del rows
        assert kept() is None
    finally:
        gc.enable()


def test_only_what_is_known_is_recorded(vocab, make_model, monkeypatch) -> None:
    model = make_model(vocab)
    assert graphs_for(model) is None
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert graphs_for(model) is not None
    with_hook, adapted = make_model(vocab), make_model(vocab)
    with_hook.model.layers[1].mlp.register_forward_hook(lambda module, given, made: made)
    attention = adapted.model.layers[0].self_attn
    attention.v_proj = nn.Sequential(attention.v_proj)
    assert graphs_for(with_hook) is graphs_for(adapted) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="records on a CUDA device")
@pytest.mark.parametrize("strategy", [Guidance(3.0), Contrastive(k=3, alpha=0.3)], ids=["guidance", "contrastive"])
@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.usefixtures("layout")
def test_recorded_on_a_gpu(larger, caption_of, make_model, strategy, window: int) -> None:
    vocab, on_cpu, _ = larger
    model = make_model(vocab, grid_embedding=True).cuda()
    model.load_state_dict(on_cpu.state_dict())
    requests = [Request(caption_of(vocab, 3 + 2 * (i // 2)), ImageAnswer(), 5, i) for i in range(4)]
    requests.append(Request(caption_of(vocab, 3), TextAnswer(3), 5, 4))
    plan = Plan.of(requests, strategy, Sampling())
    direct = Flight(plan, model, vocab) if window == 1 else JacobiFlight(plan, model, vocab, window)
    found = DecodingEngine(model, vocab).generate(requests, strategy, window=window)
    assert [answer.token_ids.tolist() for answer in found] == decoded(direct, len(requests))
