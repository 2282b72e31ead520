"""Int8 weights: the rounding is as small as it can be, and the loop runs on them unchanged."""

import copy

import pytest
import torch
from torch import nn

from cm3.decode import GREEDY, DecodingEngine, ImageAnswer, Request
from cm3.decode.int8 import Int8Linear, quantize_weights
from cm3.decode.strategies.guidance import Guidance


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_a_map_is_off_by_half_a_step_at_most(rows: int, bias: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear, x = nn.Linear(64, 48, bias=bias), torch.randn(2, rows, 64)
    rounded = Int8Linear(linear)
    exact = rounded.weight.float() * rounded.scale[:, None]
    sizes = nn.functional.linear(x.abs(), exact.abs())  # what rounding inputs, scales and outputs to bfloat16 is relative to
    assert ((rounded(x) - nn.functional.linear(x, exact, linear.bias)).abs() <= sizes * 2**-7).all()
    half = rounded.scale / 2 * x.abs().sum(-1, keepdim=True)  # the most that rounding every weight can add up to
    assert ((rounded(x) - linear(x)).abs() <= half + sizes * 2**-7).all()
    assert torch.equal(rounded(x[:, :1]), rounded(x)[:, :1])  # whatever the company, so that windows and batches change nothing
    assert rounded.weight.nbytes * 4 == linear.weight.nbytes


def test_the_loop_runs_on_them(model, vocab, caption) -> None:
    small = quantize_weights(copy.deepcopy(model))
    requests = [Request(caption(4, index), ImageAnswer(), 0, index) for index in range(2)]
    one = DecodingEngine(small, vocab).generate(requests, Guidance(2.0), GREEDY)
    several = DecodingEngine(small, vocab).generate(requests, Guidance(2.0), GREEDY, window=4)
    assert [answer.token_ids.tolist() for answer in one] == [answer.token_ids.tolist() for answer in several]
    ids = torch.tensor([[*requests[0].prompt.token_ids.tolist()]])
    with torch.no_grad():
        full, rounded = model(ids).logits, small(ids).logits
    assert 0 < (full - rounded).abs().max() < 0.2 * full.abs().max()
