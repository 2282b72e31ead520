"""LPIPS, the learned perceptual distance on VGG16 features (Zhang et al., arXiv:1801.03924, version 0.1).

Weights come from a file that the user makes once with `vqgan.conversion.lpips`; nothing is downloaded. Parameter names:
`features.N.*` as in torchvision's VGG16, `lins.k` (C,) for the five learned channel weights.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from cm3.core.errors import ArtefactError, InputError

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # widths of the convolutions before each tap
_EPSILON = 1e-10


class LPIPS(nn.Module):
    """Distance of two batches of pictures; frozen."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_vgg_layers())
        self.lins = nn.ParameterList(nn.Parameter(torch.ones(stage[-1])) for stage in STAGES)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, first: Tensor, second: Tensor, regions: Tensor | None = None) -> Tensor:
        """Both (B, 3, Y, X) in [-1, 1], sides of 16 and more → (B,) distances, 0 for equal pictures.

        `regions`: pixel weights (B, 1, Y, X), averaged to the size of each layer and taken relative to their mean.
        """
        both = (torch.cat([first, second]) - self.shift) / self.scale
        total = first.new_zeros(first.shape[0])
        for taps, weights in zip(self._taps(both), self.lins):
            length = taps.square().sum(1, keepdim=True).clamp(min=_EPSILON**2).sqrt()  # a root has no slope at 0
            one, other = (taps / (length + _EPSILON)).chunk(2)
            distances = ((one - other).square() * weights.view(1, -1, 1, 1)).sum(1)  # (B, y, x)
            if regions is not None:
                here = F.adaptive_avg_pool2d(regions, distances.shape[1:])[:, 0]
                distances = distances * (here / here.mean())
            total = total + distances.mean((1, 2))
        return total

    def _taps(self, x: Tensor) -> list[Tensor]:
        """The features before every pooling and at the end."""
        taps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                taps.append(x)
            x = layer(x)
        return [*taps, x]


def load_lpips(path: Path | str) -> LPIPS:
    """The distance with the weights in safetensors file `path`. Raises `InputError`, `ArtefactError` when they don't fit."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there are no LPIPS weights at {path}; make them with `cm3 vqgan convert --from lpips`")
    model = LPIPS()
    try:
        state = load_file(path)
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise ArtefactError(f"{path} holds no LPIPS weights: {str(error).splitlines()[0]}") from None
    if not all(torch.isfinite(tensor).all() for tensor in state.values()):
        raise ArtefactError(f"{path} holds values that are not finite; these weights can't be used")
    return model


def _vgg_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    width = 3
    for number, stage in enumerate(STAGES):
        if number:
            layers.append(nn.MaxPool2d(2))
        for before, after in pairwise((width, *stage)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        width = stage[-1]
    return layers
