"""PSNR and SSIM against scikit-image, and SSIM against a loop over windows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cm3.core.errors import UsageError
from cm3.metrics.images import psnr, ssim


def pictures(seed: int, shape: tuple[int, ...] = (3, 3, 24, 31)) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch in [0, 1], smooth and noisy parts, and versions of it that are more and more distorted."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 1, shape[-1]) * np.linspace(0.2, 1, shape[-2])[:, None]
    images = np.clip(ramp + 0.2 * rng.standard_normal(shape), 0, 1)
    noise = rng.standard_normal(shape) * np.array([0.02, 0.1, 0.4])[: shape[0], None, None, None]
    return torch.from_numpy(images).float(), torch.from_numpy(np.clip(images + noise, 0, 1)).float()


@pytest.mark.parametrize("scale", [1.0, 2.0, 255.0])
def test_equal_to_scikit_image(scale: float) -> None:
    a, b = (tensor * scale for tensor in pictures(0))
    ours_psnr, ours_ssim = psnr(a, b, scale), ssim(a, b, scale)
    assert ours_psnr.shape == ours_ssim.shape == (3,)
    for i in range(3):
        x, y = a[i].double().numpy(), b[i].double().numpy()
        expected = structural_similarity(
            x, y, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=scale
        )
        assert float(ours_ssim[i]) == pytest.approx(expected, abs=1e-6)
        assert float(ours_psnr[i]) == pytest.approx(peak_signal_noise_ratio(x, y, data_range=scale), abs=1e-4)


def test_ssim_equals_its_definition_window_by_window() -> None:
    a, b = pictures(1, (1, 1, 13, 14))
    x, y = a[0, 0].double().numpy(), b[0, 0].double().numpy()
    weights = np.array([[math.exp(-(i * i + j * j) / 4.5) for j in range(-5, 6)] for i in range(-5, 6)])
    weights /= weights.sum()
    values = []
    for row in range(3):
        for column in range(4):
            u, v = x[row : row + 11, column : column + 11], y[row : row + 11, column : column + 11]
            mean_u, mean_v = (weights * u).sum(), (weights * v).sum()
            var_u, var_v = (weights * (u - mean_u) ** 2).sum(), (weights * (v - mean_v) ** 2).sum()
            covariance = (weights * (u - mean_u) * (v - mean_v)).sum()
            top = (2 * mean_u * mean_v + 0.01**2) * (2 * covariance + 0.03**2)
            values.append(top / ((mean_u**2 + mean_v**2 + 0.01**2) * (var_u + var_v + 0.03**2)))
    assert float(ssim(a, b)[0]) == pytest.approx(np.mean(values), abs=1e-7)


def test_equal_pictures() -> None:
    a, _ = pictures(2)
    assert torch.allclose(ssim(a, a), torch.ones(3))
    assert torch.isinf(psnr(a, a)).all()


def test_known_psnr() -> None:
    a = torch.zeros(1, 3, 4, 4)
    assert float(psnr(a, a + 0.1)[0]) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(a, a + 0.1, data_range=2.0)[0]) == pytest.approx(26.0206, abs=1e-4)


def test_pictures_are_scored_one_by_one() -> None:
    a, b = pictures(3)
    for metric in (psnr, ssim):
        assert torch.equal(metric(a, b)[1:2], metric(a[1:2], b[1:2]))


def test_wrong_shapes() -> None:
    for metric in (psnr, ssim):
        with pytest.raises(UsageError, match="one shape"):
            metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16))
        with pytest.raises(UsageError, match="one shape"):
            metric(torch.zeros(3, 16, 16), torch.zeros(3, 16, 16))
    with pytest.raises(UsageError, match="at least 11×11"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))
