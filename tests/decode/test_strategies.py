"""Strategies against their formulas in float64."""

import math

import numpy as np
import pytest
import torch

from cm3.core.errors import UsageError
from cm3.core.protocols import DecodingStrategy
from cm3.decode import STRATEGIES, Sampling
from cm3.decode.strategies.contrastive import Contrastive
from cm3.decode.strategies.guidance import Guidance
from cm3.decode.strategies.mixed import Mixed
from cm3.decode.strategies.plain import Plain

LOGITS = torch.randn(4, 3, 40, generator=torch.Generator().manual_seed(0)) * 3


def probabilities(logits: torch.Tensor) -> np.ndarray:
    values = np.exp(logits.double().numpy())
    return values / values.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_fulfils_the_protocol(name: str, caption) -> None:
    strategy = STRATEGIES.get(name)()
    assert isinstance(strategy, DecodingStrategy)
    streams = strategy.streams(caption(5))
    assert streams[0].token_ids.tolist() == caption(5).token_ids.tolist()
    assert strategy.combine(LOGITS[:, : len(streams)]).shape == (4, 40)


def test_guidance_is_the_formula() -> None:
    conditional, without = LOGITS[:, 0].double(), LOGITS[:, 1].double()
    expected = without + 2.5 * (conditional - without)
    torch.testing.assert_close(Guidance(2.5).combine(LOGITS[:, :2]).double(), expected, atol=1e-5, rtol=1e-5)


def test_two_scale_guidance_is_the_formula() -> None:
    full, image, without = (part.double() for part in LOGITS.unbind(1))
    expected = without + 1.5 * (image - without) + 7.5 * (full - image)
    torch.testing.assert_close(Guidance(7.5, image_scale=1.5).combine(LOGITS).double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("k", "alpha", "scale"), [(1, 0.1, 1.0), (3, 0.5, 1.0), (7, 1.0, 0.5), (40, 0.9, 0.0), (99, 0.2, 2.0)])
def test_contrastive_against_brute_force(k: int, alpha: float, scale: float) -> None:
    combined = Contrastive(k, alpha, scale).combine(LOGITS[:, :2]).double().softmax(-1).numpy()
    expert, amateur = probabilities(LOGITS[:, 0]), probabilities(LOGITS[:, 1])
    for row in range(4):
        kth = sorted(expert[row], reverse=True)[min(k, 40) - 1]
        scores = [
            math.exp(math.log(expert[row, t]) - scale * math.log(amateur[row, t])) if expert[row, t] >= alpha * kth else 0.0
            for t in range(40)
        ]
        np.testing.assert_allclose(combined[row], np.array(scores) / sum(scores), rtol=1e-4, atol=1e-7)


def test_contrastive_scores_have_the_zero_of_the_formula() -> None:
    """A repetition penalty divides or multiplies by the sign, so it must not depend on the zero of the logits."""
    strategy, logits = Contrastive(3, 0.2, 0.7), LOGITS[:, :2]
    scores, kept = strategy.combine(logits), strategy.combine(logits) > -torch.inf
    shifted = strategy.combine(logits + torch.tensor([5.0, -9.0])[:, None])
    torch.testing.assert_close(shifted, scores, atol=1e-4, rtol=1e-5)
    expert, amateur = (torch.from_numpy(probabilities(part)).log() for part in logits.unbind(1))
    torch.testing.assert_close(scores[kept].double(), (expert - 0.7 * amateur)[kept], atol=1e-4, rtol=1e-5)


def test_mixed_draws_every_other_picture_by_contrast() -> None:
    mixed = Mixed(scale=2.0, top_p=0.8, k=3, alpha=0.2, contrast=0.5)
    assert mixed.for_picture(4, Sampling(0.7)) == (Guidance(2.0), Sampling(0.7, top_p=0.8))
    assert mixed.for_picture(4, Sampling(top_p=0.5)) == (Guidance(2.0), Sampling(top_p=0.8))
    assert Mixed().for_picture(4, Sampling(top_p=0.5)) == (Guidance(3.0), Sampling(top_p=0.5))
    assert Mixed().for_picture(4, Sampling()) == (Guidance(3.0), Sampling(top_p=0.9))
    assert Mixed(top_p=1.0).for_picture(4, Sampling(top_p=0.9)) == (Guidance(3.0), Sampling())
    assert mixed.for_picture(5, Sampling(0.7, top_p=0.5)) == (Contrastive(3, 0.2, 0.5), Sampling(0.7))


def test_streams_of_a_caption(vocab, caption) -> None:
    prompt = caption(5)
    blank = [vocab.bos_id, vocab.mask_id(0), vocab.break_id]
    assert [stream.token_ids.tolist() for stream in Guidance(2.0).streams(prompt)] == [prompt.token_ids.tolist(), blank]
    assert len(Guidance(1.0).streams(prompt)) == 1
    assert len(Guidance(3.0, image_scale=1.5).streams(prompt)) == 3
    assert [stream.token_ids.tolist() for stream in Contrastive().streams(prompt)][1] == blank
    assert len(Plain().streams(prompt)) == 1


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Guidance(math.nan), "scale"),
        (lambda: Guidance(1.0, image_scale=-1.0), "image_scale"),
        (lambda: Guidance(1001.0), "scale must be .* at most 1000, got 1001"),
        (lambda: Guidance(1.0, image_scale=1e30), "image_scale must be .* at most 1000"),
        (lambda: Contrastive(scale=1e5), "contrastive scale must be .* at most 1000"),
        (lambda: Mixed(scale=1e5), "guidance scale must be .* at most 1000"),
        (lambda: Mixed(contrast=1e5), "contrastive scale must be .* at most 1000"),
        (lambda: Mixed(k=0), "k"),
        (lambda: Mixed(top_p=2.0), "top_p"),
        (lambda: Contrastive(k=0), "k"),
        (lambda: Contrastive(alpha=0.0), "alpha"),
        (lambda: Contrastive(scale=math.inf), "scale"),
    ],
)
def test_values_out_of_range_are_refused(make, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        make()
