"""The moving average: against a plain loop, exchanged and given back, and short runs are not held back by their start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cm3.train.ema import EMA, ema_decay_at


def test_average_follows_the_definition():
    live = nn.Parameter(torch.tensor([1.0, 2.0]))
    ema, expected = EMA({"w": live}, decay=0.5), torch.tensor([1.0, 2.0], dtype=torch.float64)
    for step in range(1, 12):
        with torch.no_grad():
            live.add_(step)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * live.detach().double()
    assert torch.allclose(ema.average["w"].double(), expected, rtol=1e-5)


def test_decay_grows_to_its_value():
    assert ema_decay_at(1, 0.999) == pytest.approx(2 / 11)
    assert ema_decay_at(10**6, 0.999) == 0.999


def test_applied_exchanges_and_gives_back_even_after_an_error():
    live = nn.Parameter(torch.zeros(2))
    ema = EMA({"w": live}, decay=0.9)
    with torch.no_grad():
        live.fill_(4.0)
    pointer = live.data_ptr()
    with pytest.raises(RuntimeError), ema.applied():
        assert torch.equal(live, torch.zeros(2))
        raise RuntimeError
    assert torch.equal(live, torch.full((2,), 4.0))
    assert live.data_ptr() == pointer
    assert torch.equal(ema.average["w"], torch.zeros(2))
    ema.update(1)
    assert ema.average["w"][0] == pytest.approx(4.0 * 9 / 11)
