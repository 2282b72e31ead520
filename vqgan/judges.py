"""Judges of reconstructions that need a network: LPIPS, and the Fréchet distance of features.

A judge sees every batch of originals and reconstructions once and says its figures at the end. Pixel errors need no judge:
`vqgan.evaluation` has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cm3.core.errors import InputError, UsageError
from vqgan.config import LPIPS_SIDE
from vqgan.features import FeatureNetwork, load_features
from vqgan.losses.lpips import LPIPS, load_lpips
from vqgan.preprocessing import pixels_to_arrays


class Judge(Protocol):
    """Originals and reconstructions (B, 3, Y, X) in [-1, 1], batch by batch, to named figures."""

    def see(self, originals: Tensor, reconstructions: Tensor) -> None: ...
    def figures(self) -> dict[str, float]: ...


class PerceptualJudge:
    """The mean LPIPS distance of each picture to its reconstruction, as `lpips`."""

    def __init__(self, network: LPIPS, device: torch.device | str = "cpu") -> None:
        self._network, self._device = network.to(device), device
        self._sum, self._count = 0.0, 0

    def see(self, originals: Tensor, reconstructions: Tensor) -> None:
        """Add the distances of one batch. Raises `InputError` for pictures under 16 pixels on a side."""
        if min(originals.shape[-2:]) < LPIPS_SIDE:
            raise InputError(f"LPIPS needs pictures of {LPIPS_SIDE} pixels and more, got {tuple(originals.shape[-2:])}")
        with torch.inference_mode():
            distances = self._network(originals.to(self._device), reconstructions.to(self._device))
        self._sum, self._count = self._sum + float(distances.double().sum()), self._count + len(distances)

    def figures(self) -> dict[str, float]:
        """{"lpips"}: 0 for equal pictures, lower is better."""
        return {"lpips": self._sum / max(self._count, 1)}


class FrechetJudge:
    """The Fréchet distance between the features of originals and those of reconstructions, by torchmetrics.

    `rfid` with the Inception network, `frechet_distance` with any other. It falls with the number of pictures: compare only
    figures of equally many (the literature takes 50,000).
    """

    def __init__(self, network: FeatureNetwork) -> None:
        self._network = network
        self._metric: Any = None  # made when the first features say how wide they are

    def see(self, originals: Tensor, reconstructions: Tensor) -> None:
        """Add the features of one batch, taken from 8-bit pictures as they would be saved."""
        for pixels, real in ((originals, True), (reconstructions, False)):
            features = self._network.features_of(pixels_to_arrays(pixels).permute(0, 3, 1, 2)).cpu()  # (B, E)
            if self._metric is None:
                self._metric = _frechet_metric(features.shape[1])
            self._metric.update(features, real=real)

    def figures(self) -> dict[str, float]:
        """{"rfid"} or {"frechet_distance"}. Raises `InputError` for fewer than two pictures."""
        if self._metric is None or int(self._metric.real_features_num_samples) < 2:
            raise InputError("a Fréchet distance needs at least two pictures (and means little under some thousands)")
        return {"rfid" if self._network.inception else "frechet_distance": float(self._metric.compute())}


def open_judges(
    lpips: Path | str | None = None, features: Path | str | None = None, device: torch.device | str = "cpu"
) -> list[Judge]:
    """The judges whose networks are given: `lpips` a weight file of ours, `features` see `vqgan.features`."""
    judges: list[Judge] = []
    if lpips is not None:
        judges.append(PerceptualJudge(load_lpips(lpips), device))
    if features is not None:
        judges.append(FrechetJudge(load_features(features, device)))
    return judges


class _Features(nn.Module):
    """What torchmetrics takes for a feature network: here the features come in ready."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def _frechet_metric(width: int) -> Any:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError:
        raise UsageError("a Fréchet distance needs torchmetrics; install it with pip install 'cm3-multimodal[eval]'") from None
    return FrechetInceptionDistance(feature=_Features(width)).set_dtype(torch.float64)
