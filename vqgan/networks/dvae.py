"""DALL-E's dVAE encoder and decoder (arXiv:2102.12092, appendix A.1; openai/DALL-E).

The last 1×1 convolution of the published encoder and the first of its decoder live in the Gumbel quantizer (`proj`, `embed`):
that is where codes are. The decoder emits the six maps of the logit-Laplace likelihood.
"""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cm3.core.errors import UsageError
from cm3.core.runfile import RunConfig
from vqgan.config import VQConfig, checked
from vqgan.losses.logit_laplace import squeeze
from vqgan.networks.coders import Coders


class DVAEOptions(RunConfig):
    """`hidden` channels of the first group, doubling with every group; `groups` of `blocks_per_group`; resolution halves between
    groups. `codebook_dim` of the tokenizer is the decoder's input width (128 in the paper)."""

    hidden: int = Field(256, ge=4)
    groups: int = Field(4, ge=1)
    blocks_per_group: int = Field(2, ge=1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every group, from full resolution down."""
        return tuple(self.hidden * 2**group for group in range(self.groups))


def build(config: VQConfig) -> Coders:
    """Encoder and decoder of `config`; `network_options` as `DVAEOptions`. Raises `UsageError` when sizes don't fit."""
    options = checked(DVAEOptions, config.network_options, "network_options of 'dvae'")
    if 2 ** (options.groups - 1) != config.downsample_factor:
        raise UsageError(
            f"network 'dvae' with {options.groups} groups reduces by {2 ** (options.groups - 1)}, "
            f"but downsample_factor is {config.downsample_factor}"
        )
    if config.quantizer != "gumbel" or config.quantizer_options.get("latent_dim") != options.widths[-1]:
        raise UsageError(f"network 'dvae' goes with quantizer 'gumbel' and quantizer_options latent_dim = {options.widths[-1]}")
    return Coders(DVAEEncoder(options), DVAEDecoder(options, config.codebook_dim), nn.Identity(), nn.Identity())


class DVAEEncoder(nn.Module):
    """Pixels (B, 3, Y, X) → (B, widths[-1], Y / factor, X / factor)."""

    def __init__(self, options: DVAEOptions) -> None:
        super().__init__()
        self.input = _conv(3, options.hidden, 7)
        widths = (options.hidden, *options.widths)
        self.groups = nn.ModuleList(_group(before, after, options, kernels=(3, 3, 3, 1)) for before, after in pairwise(widths))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.input(squeeze(pixels))
        for index, group in enumerate(self.groups):
            x = group(x if index == 0 else F.max_pool2d(x, 2))
        return F.relu(x)


class DVAEDecoder(nn.Module):
    """(B, codebook_dim, h, w) → maps (B, 6, h * factor, w * factor), see `vqgan.losses.logit_laplace`."""

    def __init__(self, options: DVAEOptions, width: int) -> None:
        super().__init__()
        widths = (width, *reversed(options.widths))
        self.groups = nn.ModuleList(_group(before, after, options, kernels=(1, 3, 3, 3)) for before, after in pairwise(widths))
        self.output = _conv(options.hidden, 6, 1)

    @property
    def last_weight(self) -> Tensor:
        return self.output.weight

    def forward(self, latents: Tensor) -> Tensor:
        x = latents
        for index, group in enumerate(self.groups):
            x = group(x if index == 0 else F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.output(F.relu(x))


class _Block(nn.Module):
    """id(x) + gain · res(x); the small gain keeps a deep stack stable."""

    def __init__(self, width_in: int, width: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = _conv(width_in, width, 1) if width_in != width else nn.Identity()
        sizes = (width_in, *(width // 4 for _ in kernels[1:]), width)
        self.res_path = nn.ModuleList(_conv(before, after, kernel) for (before, after), kernel in zip(pairwise(sizes), kernels))

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for layer in self.res_path:
            h = layer(F.relu(h))
        return self.id_path(x) + self.gain * h


def _group(width_in: int, width: int, options: DVAEOptions, kernels: tuple[int, ...]) -> nn.Sequential:
    gain = 1.0 / (options.groups * options.blocks_per_group) ** 2
    inputs = [width_in] + [width] * (options.blocks_per_group - 1)
    return nn.Sequential(*(_Block(before, width, kernels, gain) for before in inputs))


def _conv(width_in: int, width: int, kernel: int) -> nn.Conv2d:
    layer = nn.Conv2d(width_in, width, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=(width_in * kernel**2) ** -0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
