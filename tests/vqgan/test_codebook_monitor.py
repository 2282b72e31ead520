"""Use of the codebook over recent steps, the verdict of collapse, and a remedy that fits the quantizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import PartialState

from vqgan.codebook_monitor import HORIZON, CodebookMonitor, collapse_warning, has_collapsed
from vqgan.config import VQConfig
from vqgan.losses.adversarial import LeCAM
from vqgan.quantizers import QUANTIZERS


def test_even_use_is_full_and_perplexity_is_the_number_of_codes() -> None:
    monitor = CodebookMonitor(8)
    for step in range(4):
        recent = monitor(torch.tensor([2 * step, 2 * step + 1]).repeat(500))
    assert float(recent["usage"]) == 1.0
    assert float(recent["perplexity"]) == pytest.approx(8, rel=1e-3)  # later steps count 3 % more
    assert monitor.vectors() == pytest.approx(1000 * (1 + 0.99 + 0.99**2 + 0.99**3))


def test_codes_of_long_ago_no_longer_count() -> None:
    monitor = CodebookMonitor(4)
    monitor(torch.tensor([3]))
    for step in range(HORIZON + 2):
        recent = monitor(torch.tensor([0]))
        assert float(recent["usage"]) == (0.5 if step < HORIZON else 0.25)
    assert monitor.state_dict().keys() == {"counts"}


def test_processes_count_together(on_two: Callable[[Callable[[], object]], list[int]]) -> None:
    codes, logits = torch.tensor([[0, 0, 1], [2, 2, 2]]), torch.tensor([[3.0, 1.0], [0.0, -2.0]])  # a row for each process

    def work() -> None:
        rank = PartialState(cpu=True).process_index
        monitor, lecam = CodebookMonitor(4), LeCAM(decay=0.5)
        recent = monitor(codes[rank])
        assert monitor.counts.tolist() == [2, 1, 3, 0]
        assert float(recent["usage"]) == 0.75
        real = logits[rank].clone().requires_grad_()
        lecam(real, -logits[rank]).backward()
        assert float(lecam.real_average) == 0.25  # of the mean over both rows
        assert float(lecam.fake_average) == -0.25
        assert real.grad is not None

    assert on_two(work) == [0, 0]


def test_few_vectors_tell_nothing() -> None:
    assert has_collapsed(0.01, 20.0, vectors=10_000, codebook_size=8192)
    assert not has_collapsed(0.01, 20.0, vectors=1_000, codebook_size=8192)
    assert not has_collapsed(0.5, 200.0, vectors=10_000, codebook_size=8192)
    assert has_collapsed(0.5, 2.0, vectors=1_000, codebook_size=512)
    assert not has_collapsed(1.0, 2.0, vectors=1_000, codebook_size=2)


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_every_quantizer_has_its_remedy(name: str) -> None:
    sentence = collapse_warning(0.02, 9.0, VQConfig(quantizer=name), initialized=True)
    assert sentence.startswith("the codebook has collapsed: 2.0% of 512 codes in use, perplexity 9.0; ")
    assert "another quantizer" not in sentence
    assert f"take quantizer {name!r}" not in sentence


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_a_start_from_data_is_advised_where_it_changes_the_vectors(name: str) -> None:
    config = VQConfig(quantizer=name, codebook_size=512, codebook_dim=8)
    quantizer = QUANTIZERS.get(name)(config)
    before = quantizer.codebook().detach().clone()
    latents = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    quantizer.initialize(latents, torch.ones(600), 0)
    starts = not torch.equal(quantizer.codebook(), before)
    assert ("initialize_from_data" in collapse_warning(0.02, 9.0, config, initialized=False)) == starts


def test_what_is_already_done_is_not_advised() -> None:
    restarted = VQConfig(quantizer="ema", quantizer_options={"restart_below": 0.5})
    assert "restart_below" not in collapse_warning(0.02, 9.0, restarted, initialized=True)
    assert "initialize_from_data" in collapse_warning(0.02, 9.0, restarted, initialized=False)
