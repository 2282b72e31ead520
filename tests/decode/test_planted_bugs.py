"""The sampler against an independent one in float64, by chi-square; and the test against samplers with a planted bug.

V = 8192, n = 200,000. The likely ids lie side by side, so that noise is needed for them alone; all others are outside the
support of every sampler here, and a filter that lets one of them through is caught by that alone.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cm3.decode.noise import gumbel_noise, picture_keys
from cm3.decode.sampling import Sampling, filtered

SIZE, DRAWS, CHUNK = 8192, 200_000, 20_000
FIRST, WIDTH = 5000, 64  # where the likely ids are
TOP_K, TOP_P, MIN_P = Sampling(0.7, top_k=12), Sampling(0.7, top_p=0.8), Sampling(0.7, min_p=0.05)
WIDE = Sampling(1.0, top_k=50)
ALL = Sampling(0.7, top_k=20, top_p=0.95, min_p=0.02)
# chi-square on fixed seeds: a sound sampler falls below SOUND once in ten thousand seeds, a bug must fall far below it
SOUND, BROKEN = 1e-4, 1e-12


def logits() -> torch.Tensor:
    values = torch.full((1, SIZE), -20.0)
    values[0, FIRST : FIRST + WIDTH] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2)) * 1.5
    return values


def reference(sampling: Sampling) -> np.ndarray:
    """(V,) float64: the distribution by the definitions, one id after the other."""
    scores = logits()[0].double().numpy() / sampling.temperature
    order = sorted(range(SIZE), key=lambda index: -scores[index])[: sampling.top_k or SIZE]
    weights = {index: math.exp(scores[index]) for index in order}
    total, kept, reached = sum(weights.values()), [], 0.0
    for index in order:
        if reached >= sampling.top_p:
            break
        kept.append(index)
        reached += weights[index] / total
    kept = [index for index in kept if weights[index] >= sampling.min_p * weights[order[0]]]
    target = np.zeros(SIZE)
    target[kept] = [weights[index] for index in kept]
    return target / target.sum()


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    """(n, WIDTH) noise of the likely ids at n places of one picture."""
    keys = picture_keys([(11, 0)])
    ids = (FIRST, FIRST + WIDTH)
    return torch.cat([gumbel_noise(keys, start, CHUNK, ids)[0] for start in range(0, DRAWS, CHUNK)])


def p_value(scores: torch.Tensor, noise: torch.Tensor, sampling: Sampling) -> float:
    """How well draws by argmax(scores + noise) fit the reference; 0 when one lies outside of its support."""
    target = reference(sampling)
    if bool((scores[0, :FIRST] > -torch.inf).any() | (scores[0, FIRST + WIDTH :] > -torch.inf).any()):
        return 0.0
    counts = torch.bincount((scores[:, FIRST : FIRST + WIDTH] + noise).argmax(dim=1), minlength=WIDTH).numpy()
    expected = target[FIRST : FIRST + WIDTH] * DRAWS
    if counts[expected == 0].sum():
        return 0.0
    common = expected > 5
    observed = [*counts[common], counts[~common].sum()]
    predicted = [*expected[common], expected[~common].sum()]
    if predicted[-1] == 0:
        observed, predicted = observed[:-1], predicted[:-1]
    return float(stats.chisquare(observed, predicted).pvalue)


@pytest.mark.parametrize("sampling", [TOP_K, TOP_P, MIN_P, ALL], ids=["top-k", "top-p", "min-p", "all"])
def test_the_sampler_is_sound(sampling: Sampling, noise) -> None:
    assert p_value(filtered(logits(), sampling), noise, sampling) > SOUND
    assert np.array_equal(reference(sampling) > 0, filtered(logits(), sampling)[0].numpy() > -math.inf)


def stops_early() -> torch.Tensor:
    """top-p without the id at which p is reached."""
    kept = filtered(logits(), TOP_P)
    return kept.masked_fill(kept == kept[kept > -torch.inf].min(), -torch.inf)


def on_unsorted_ids() -> torch.Tensor:
    cooled = logits() / 0.7
    return cooled.masked_fill(cooled.softmax(-1).cumsum(-1) > 0.8, -torch.inf)


def of_the_least_likely() -> torch.Tensor:
    """top-p summed from the wrong end."""
    cooled = logits() / 0.7
    ordered = cooled.softmax(-1).sort(-1)
    dropped = ordered.indices[ordered.values.cumsum(-1) > 0.8]
    return cooled.index_fill(1, dropped, -torch.inf)


def min_p_of_one() -> torch.Tensor:
    """min-p beside 1 instead of beside the most likely id."""
    cooled = logits() / 0.7
    return cooled.masked_fill(cooled.softmax(-1) < 0.05, -torch.inf)


BUGS = {
    "k is one too many": (TOP_K, lambda: filtered(logits(), Sampling(0.7, top_k=13))),
    "k is one too few": (TOP_K, lambda: filtered(logits(), Sampling(0.7, top_k=11))),
    "temperature multiplies": (TOP_K, lambda: filtered(logits(), Sampling(1 / 0.7, top_k=12))),
    "temperature is forgotten": (TOP_K, lambda: filtered(logits(), Sampling(1.0, top_k=12))),
    "temperature comes after the filters": (TOP_P, lambda: filtered(logits(), Sampling(1.0, top_p=0.8)) / 0.7),
    "top-p stops one id early": (TOP_P, stops_early),
    "top-p on unsorted ids": (TOP_P, on_unsorted_ids),
    "top-p from the wrong end": (TOP_P, of_the_least_likely),
    "min-p is absolute": (MIN_P, min_p_of_one),
    "nothing is filtered": (ALL, lambda: logits() / 0.7),
}
BAD_NOISE = {
    "uniform noise": lambda noise: torch.exp(-torch.exp(-noise)),
    "noise of the wrong sign": lambda noise: -noise,
    "the same noise at many places": lambda noise: noise[torch.arange(DRAWS) // 50 * 50],
    "the same noise for neighbors": lambda noise: noise[:, torch.arange(WIDTH) // 2 * 2],
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_in_a_filter_is_caught(bug: str, noise) -> None:
    sampling, broken = BUGS[bug]
    assert p_value(broken(), noise, sampling) < BROKEN


@pytest.mark.parametrize("bug", BAD_NOISE)
def test_a_planted_bug_in_the_noise_is_caught(bug: str, noise) -> None:
    assert p_value(filtered(logits(), WIDE), noise, WIDE) > SOUND
    assert p_value(filtered(logits(), WIDE), BAD_NOISE[bug](noise), WIDE) < BROKEN
