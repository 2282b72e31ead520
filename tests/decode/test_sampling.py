"""Filters against definitions written out; what is drawn is tested in `test_planted_bugs.py`."""

import math

import pytest
import torch
import transformers

from cm3.core.errors import UsageError
from cm3.decode.noise import gumbel_noise, picture_keys
from cm3.decode.sampling import Sampling, draw, filtered, keep_min_p, keep_top_k, keep_top_p, penalize

LOGITS = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("k", [1, 3, 50, 0, 80])
def test_top_k_keeps_the_k_most_likely(k: int) -> None:
    kept = keep_top_k(LOGITS, k)
    for row, result in zip(LOGITS.tolist(), kept.tolist()):
        best = sorted(range(50), key=lambda index: -row[index])[: k or 50]
        assert {index for index in range(50) if result[index] > -math.inf} == set(best)
        assert all(result[index] == row[index] for index in best)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float) -> None:
    kept = keep_top_p(LOGITS, p)
    for row, result in zip(LOGITS.double().softmax(-1).tolist(), kept.tolist()):
        order = sorted(range(50), key=lambda index: -row[index])
        expected, total = set(), 0.0
        for index in order:
            if total >= p:
                break
            expected.add(index)
            total += row[index]
        assert {index for index in range(50) if result[index] > -math.inf} == expected


@pytest.mark.parametrize("p", [0.0, 0.02, 0.3, 0.9])
def test_min_p_keeps_what_is_likely_beside_the_likeliest(p: float) -> None:
    kept = keep_min_p(LOGITS, p) > -math.inf
    probabilities = LOGITS.double().softmax(-1)
    assert torch.equal(kept, probabilities >= p * probabilities.amax(-1, keepdim=True))


def test_min_p_and_the_penalty_are_those_of_transformers() -> None:
    ids = torch.tensor([[1, 5, 5], [0, 2, 49], [3, 4, 6], [7, 8, 9], [1, 1, 1]])
    seen = torch.zeros(5, 50, dtype=torch.bool).scatter(1, ids, True)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)(ids, LOGITS.clone())
    torch.testing.assert_close(penalize(LOGITS, seen, 1.3), theirs)
    torch.testing.assert_close(keep_min_p(LOGITS, 0.1), transformers.MinPLogitsWarper(0.1)(ids, LOGITS))


def test_temperature_acts_before_the_filters() -> None:
    sampling = Sampling(temperature=0.25, top_p=0.9)
    assert torch.equal(filtered(LOGITS, sampling) > -math.inf, keep_top_p(LOGITS * 4, 0.9) > -math.inf)
    assert (filtered(LOGITS, sampling) > -math.inf).sum() < (keep_top_p(LOGITS, 0.9) > -math.inf).sum()


def test_greedy_takes_the_largest_and_needs_no_noise() -> None:
    assert torch.equal(draw(LOGITS, Sampling(temperature=0.0), None), LOGITS.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-7, 1e-40, 5e-324])
def test_hardly_any_temperature_is_none(temperature: float) -> None:
    noise = gumbel_noise(picture_keys([(0, 0)]), 0, 5, (0, 50))[0]
    ascending = torch.arange(50.0).expand(5, 50) + 1  # every logit overflows at 1e-40, the first would win
    assert torch.equal(draw(ascending, Sampling(temperature), noise), ascending.argmax(-1))


def test_noise_decides_with_filters_inside_draw() -> None:
    sampling = Sampling(temperature=0.5, top_k=2)
    noise = torch.zeros_like(LOGITS)
    second = LOGITS.argsort(-1, descending=True)[:, 1]
    third = LOGITS.argsort(-1, descending=True)[:, 2]
    noise[torch.arange(5), second] = 100.0
    noise[torch.arange(5), third] = 1000.0
    assert torch.equal(draw(LOGITS, sampling, noise), second)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": math.nan},
        {"min_p": 1.0},
        {"min_p": math.nan},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
    ],
)
def test_values_out_of_range_are_refused(values: dict) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        Sampling(**values)
