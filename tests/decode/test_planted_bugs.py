"""Every sampler against an independent one in float64, by chi-square; and the test against samplers with a planted bug.

V = 8192, n = 200,000. The likely ids lie side by side, so that noise is needed for them alone (that this changes no draw is
tested first); a filter that lets any other id through is caught by that alone.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cm3.decode.noise import gumbel_noise, picture_keys
from cm3.decode.sampling import Sampling, draw, filtered
from cm3.decode.strategies.contrastive import Contrastive
from cm3.decode.strategies.guidance import Guidance
from cm3.decode.strategies.mixed import Mixed
from cm3.decode.strategies.plain import Plain

SIZE, DRAWS, CHUNK = 8192, 200_000, 20_000
FIRST, WIDTH = 5000, 64  # where the likely ids are
TOP_K, TOP_P, MIN_P = Sampling(0.7, top_k=12), Sampling(0.7, top_p=0.8), Sampling(0.7, min_p=0.05)
WIDE = Sampling(1.0, top_k=50)
ALL = Sampling(0.7, top_k=20, top_p=0.95, min_p=0.02)
CD_K = Contrastive(k=3, alpha=0.2, scale=0.5)
SAMPLERS = {
    "temperature": (Plain(), Sampling(0.7)),
    "top-k": (Plain(), TOP_K),
    "top-p": (Plain(), TOP_P),
    "min-p": (Plain(), MIN_P),
    "all": (Plain(), ALL),
    "guidance": (Guidance(1.5), TOP_P),
    "CD-K": (CD_K, Sampling(0.7)),
    "CD-K, top-p": (CD_K, TOP_P),
    "mixed, by guidance": Mixed(1.5, k=3, alpha=0.2, contrast=0.5).for_picture(0, Sampling(0.7)),
    "mixed, by CD-K": Mixed(1.5, k=3, alpha=0.2, contrast=0.5).for_picture(1, Sampling(0.7)),
}
# chi-square on fixed seeds: a sound sampler falls below SOUND once in ten thousand seeds, a bug must fall far below it
SOUND, BROKEN = 1e-4, 1e-12


def streams() -> torch.Tensor:
    """(1, 2, V) logits of the stream with its condition and of the one without."""
    values = torch.full((1, 2, SIZE), -20.0)
    values[..., FIRST : FIRST + WIDTH] = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2)) * 1.5
    return values


def logits(strategy=Plain()) -> torch.Tensor:  # noqa: B008
    """(1, V) scores of `strategy`."""
    return strategy.combine(streams()[:, : 1 if isinstance(strategy, Plain) else 2])


def reference_scores(strategy) -> np.ndarray:
    """(V,) float64: the scores of `strategy` by its formula, one id after the other."""
    conditional, without = streams()[0].double().numpy()
    if isinstance(strategy, Guidance):
        return np.array([w + strategy.scale * (c - w) for c, w in zip(conditional, without)])
    if isinstance(strategy, Contrastive):
        pairs = list(zip(*(np.exp(values) / np.exp(values).sum() for values in (conditional, without))))
        least = strategy.alpha * sorted(p_cond for p_cond, _ in pairs)[-strategy.k]
        return np.array([math.log(c) - strategy.scale * math.log(u) if c >= least else -math.inf for c, u in pairs])
    return conditional


def reference(sampling: Sampling, strategy=Plain()) -> np.ndarray:  # noqa: B008
    """(V,) float64: the distribution by the definitions, one id after the other."""
    scores = reference_scores(strategy) / sampling.temperature
    order = sorted(range(SIZE), key=lambda index: -scores[index])[: sampling.top_k or SIZE]
    weights = {index: math.exp(scores[index] - scores[order[0]]) for index in order}
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


def p_value(scores: torch.Tensor, noise: torch.Tensor, target: np.ndarray) -> float:
    """How well draws by argmax(scores + noise) fit the distribution `target`; 0 when one lies outside of its support."""
    likely = slice(FIRST, FIRST + WIDTH)
    if (np.delete(scores[0].numpy(), likely) > -math.inf)[np.delete(target, likely) == 0].any():
        return 0.0
    counts = torch.bincount((scores[:, likely] + noise).argmax(dim=1), minlength=WIDTH).numpy()
    expected = target[likely] * DRAWS
    if counts[expected == 0].sum():
        return 0.0
    common = expected > 5
    observed = [*counts[common], counts[~common].sum()]
    predicted = [*expected[common], expected[~common].sum()]
    if predicted[-1] == 0:
        observed, predicted = observed[:-1], predicted[:-1]
    return float(stats.chisquare(observed, np.array(predicted) * (DRAWS / sum(predicted))).pvalue)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampler_is_sound(name: str, noise) -> None:
    strategy, sampling = SAMPLERS[name]
    scores, target = filtered(logits(strategy), sampling), reference(sampling, strategy)
    assert p_value(scores, noise, target) > SOUND
    assert np.array_equal(target > 0, scores[0].numpy() > -math.inf)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_from_all_ids_are_draws_from_the_likely_ones(name: str, noise) -> None:
    strategy, sampling = SAMPLERS[name]
    everywhere = gumbel_noise(picture_keys([(11, 0)]), 0, 200, (0, SIZE))[0]
    drawn = draw(logits(strategy).expand(200, -1), sampling, everywhere)
    likely = filtered(logits(strategy), sampling)[:, FIRST : FIRST + WIDTH] + noise[:200]
    assert torch.equal(drawn, likely.argmax(dim=1) + FIRST)


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
CONTRASTIVE_BUGS = {
    "k is one too many": Contrastive(4, 0.2, 0.5),
    "k is left out": Contrastive(1, 0.2, 0.5),
    "the ratio is not scaled": Contrastive(3, 0.2, 1.0),
    "plausible by the k-th logit itself": Contrastive(3, 1.0, 0.5),
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
    assert p_value(broken(), noise, reference(sampling)) < BROKEN


@pytest.mark.parametrize("bug", CONTRASTIVE_BUGS)
def test_a_planted_bug_in_contrastive_decoding_is_caught(bug: str, noise) -> None:
    sampling = Sampling(0.7)
    assert p_value(filtered(logits(CONTRASTIVE_BUGS[bug]), sampling), noise, reference(sampling, CD_K)) < BROKEN


@pytest.mark.parametrize("bug", BAD_NOISE)
def test_a_planted_bug_in_the_noise_is_caught(bug: str, noise) -> None:
    assert p_value(filtered(logits(), WIDE), noise, reference(WIDE)) > SOUND
    assert p_value(filtered(logits(), WIDE), BAD_NOISE[bug](noise), reference(WIDE)) < BROKEN
