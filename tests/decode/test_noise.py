"""The noise against SplitMix64 in plain Python and against the Gumbel distribution."""

import math

import pytest
import torch
from scipy import stats

from cm3.decode.noise import gumbel_noise, picture_keys

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(state: int) -> int:
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WORD
    return state ^ (state >> 31)


def test_against_plain_integers() -> None:
    keys = picture_keys([(0, 0), (7, 3)])
    noise = gumbel_noise(keys, first=5, count=3, id_range=(10, 14))
    for row, key in enumerate(keys.tolist()):
        for step in range(3):
            place = splitmix((key + (5 + step + 1) * GOLDEN) % WORD)
            for column in range(4):
                bits = splitmix((place + (10 + column + 1) * GOLDEN) % WORD)
                expected = -math.log(-math.log1p(-((bits >> 11) + 0.5) / 2**53))
                assert math.isclose(noise[row, step, column].item(), expected, rel_tol=1e-5, abs_tol=1e-5)


def test_the_largest_numbers_are_finite() -> None:
    noise = gumbel_noise(picture_keys([(1, 0)]), first=3033, count=1, id_range=(1303, 1304))
    assert noise.item() == pytest.approx(-math.log(24 * math.log(2)), rel=1e-6)  # 1 - 2^-24, where float32 would round to 1


def test_a_part_is_cut_out_of_the_whole() -> None:
    keys = picture_keys([(0, 0), (0, 1), (1, 0)])
    whole = gumbel_noise(keys, 0, 6, (0, 40))
    assert torch.equal(gumbel_noise(keys[1:2], 2, 3, (7, 19)), whole[1:2, 2:5, 7:19])


def test_it_is_gumbel_and_rows_differ() -> None:
    noise = gumbel_noise(picture_keys([(3, 0), (3, 1)]), 0, 50, (0, 500))
    # Kolmogorov-Smirnov on 50,000 numbers; fixed seed, a sound generator fails one seed in a thousand
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    first, second = noise[0].flatten(), noise[1].flatten()
    # correlation of 25,000 independent pairs: |r| > 0.025 has probability 8e-5
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.025
    assert abs(torch.corrcoef(torch.stack([first[:-1], first[1:]]))[0, 1]) < 0.025
