"""Judges against direct computation: the mean of LPIPS, and the Fréchet distance by its formula in NumPy and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from cm3.core.errors import InputError
from vqgan.features import FeatureNetwork
from vqgan.judges import FrechetJudge, PerceptualJudge
from vqgan.losses.lpips import LPIPS


def _pairs(seed: int, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    before = torch.rand(5, 3, size, size, generator=generator) * 2 - 1
    return before, (before * 0.5 + 0.2 * torch.randn(before.shape, generator=generator)).clamp(-1, 1)


def _corners(images: torch.Tensor) -> torch.Tensor:
    """Four pixels as features (B, 4)."""
    return images.float()[:, 0, [0, 0, 3, 5], [0, 4, 2, 5]]


@pytest.mark.parametrize("inception", [False, True])
def test_frechet_is_its_formula(inception: bool) -> None:
    judge = FrechetJudge(FeatureNetwork("corners", inception, _corners))
    seen = []
    for seed in range(4):
        before, after = _pairs(seed)
        judge.see(before, after)
        seen.append([_corners(((pixels + 1) * 127.5).round()).double().numpy() for pixels in (before, after)])
    real, made = (np.concatenate(column) for column in zip(*seen))
    root = scipy.linalg.sqrtm(np.cov(real.T) @ np.cov(made.T)).real
    expected = ((real.mean(0) - made.mean(0)) ** 2).sum() + np.trace(np.cov(real.T) + np.cov(made.T) - 2 * root)
    name = "rfid" if inception else "frechet_distance"
    assert judge.figures() == {name: pytest.approx(expected, rel=1e-5)}


def test_equal_pictures_are_at_no_distance() -> None:
    judge = FrechetJudge(FeatureNetwork("corners", False, _corners))
    before = torch.cat([_pairs(seed)[0] for seed in range(4)])
    judge.see(before, before)
    assert judge.figures()["frechet_distance"] == pytest.approx(0.0, abs=1e-6)


def test_one_picture_has_no_distribution() -> None:
    judge = FrechetJudge(FeatureNetwork("corners", False, _corners))
    with pytest.raises(InputError, match="at least two pictures"):
        judge.figures()


def test_lpips_is_averaged_over_pictures() -> None:
    torch.manual_seed(0)
    network = LPIPS()
    judge = PerceptualJudge(network)
    pairs = [_pairs(0), tuple(half[:2] for half in _pairs(1))]
    for before, after in pairs:
        judge.see(before, after)
    expected = torch.cat([network(before, after) for before, after in pairs]).mean()
    assert judge.figures() == {"lpips": pytest.approx(float(expected), rel=1e-5)}
    with pytest.raises(InputError, match="16 pixels and more"):
        judge.see(*_pairs(2, size=8))
