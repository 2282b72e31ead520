"""Compiled steps: the tokens of steps that are not, and one sentence where nothing can be compiled."""

import shutil

import pytest
import torch
import torch._dynamo
from torch import nn

from cm3.core.errors import UsageError
from cm3.decode import DecodingEngine, ImageAnswer, Request
from cm3.decode.compiled import _Compiled
from cm3.decode.strategies.guidance import Guidance


@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="compiles with a C++ compiler")
def test_compiled_steps_draw_the_same(vocab, make_model, caption) -> None:
    model = make_model(vocab, num_hidden_layers=1)
    requests = [Request(caption(3 + index), ImageAnswer(), 5, index) for index in range(2)]
    expected = [answer.token_ids.tolist() for answer in DecodingEngine(model, vocab).generate(requests, Guidance(3.0))]
    engine = DecodingEngine(model, vocab, compile_steps=True)
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    for _ in range(2):
        found = engine.generate(requests, Guidance(3.0))
        assert [answer.token_ids.tolist() for answer in found] == expected
    assert counts["unique_graphs"] == before + 1  # one for all steps, and for the second batch of the same size


def test_nothing_to_compile_with_is_said() -> None:
    from torch._inductor import config

    nowhere = config.patch({"cpp.cxx": (None, "/nowhere/g++")})  # pytest's own way would leave the setting deleted
    with nowhere, pytest.raises(UsageError, match=r"steps cannot be compiled here \(.*; install a C\+\+ compiler"):
        _Compiled(lambda x: (x + 1).sin() * 2)(torch.ones(7))


def test_adapters_are_not_compiled(vocab, make_model) -> None:
    model = make_model(vocab)
    model.model.layers[0].mlp.down_proj = nn.Sequential(model.model.layers[0].mlp.down_proj)
    with pytest.raises(UsageError, match="adapters or hooks cannot be compiled; merge or remove them"):
        DecodingEngine(model, vocab, compile_steps=True)
