"""The small network for small pictures: a linear patch projection with residual convolutions around it.

The residual branches end in zeros, so that a new network is exactly linear: patches → their first principal components, and
back. `initialize` sets these components from training patches, which is why such a tokenizer is useful
after seconds; training then learns what the code alone cannot say but its neighbors can.
"""

from __future__ import annotations

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cm3.core.runfile import RunConfig
from vqgan.config import VQConfig, checked
from vqgan.networks.coders import Coders


class PatchOptions(RunConfig):
    """`width` channels of the code grid; residual blocks of the encoder and the decoder; `pixel_channels` of the residual
    stage that smooths the decoder's patch borders at full resolution (0: none)."""

    width: int = Field(96, ge=1)
    encoder_blocks: int = Field(1, ge=0)
    decoder_blocks: int = Field(2, ge=0)
    pixel_channels: int = Field(0, ge=0)


def build(config: VQConfig) -> Coders:
    """Encoder and decoder of `config`; `network_options` as `PatchOptions`."""
    options = checked(PatchOptions, config.network_options, "network_options of 'patch'")
    width = max(options.width, config.codebook_dim)
    return Coders(
        encoder=PatchEncoder(config.downsample_factor, width, options.encoder_blocks),
        decoder=PatchDecoder(config.downsample_factor, width, options),
        to_code=nn.Conv2d(width, config.codebook_dim, 1),
        from_code=nn.Conv2d(config.codebook_dim, width, 1),
    )


class PatchEncoder(nn.Module):
    """Pixels (B, 3, Y, X) → (B, width, Y / factor, X / factor)."""

    def __init__(self, factor: int, width: int, blocks: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, factor, stride=factor)
        self.blocks = nn.Sequential(*(ResidualBlock(width, width) for _ in range(blocks)))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.blocks(self.project(pixels))


class PatchDecoder(nn.Module):
    """(B, width, h, w) → pixels (B, 3, h * factor, w * factor), not clamped."""

    def __init__(self, factor: int, width: int, options: PatchOptions) -> None:
        super().__init__()
        self.factor = factor
        self.blocks = nn.Sequential(*(ResidualBlock(width, width) for _ in range(options.decoder_blocks)))
        self.project = nn.Conv2d(width, 3 * factor * factor, 1)
        pixel = options.pixel_channels
        self.smooth = PixelResidual(pixel) if pixel else nn.Identity()

    @property
    def last_weight(self) -> Tensor:
        return self.project.weight

    def forward(self, latents: Tensor) -> Tensor:
        patches = self.project(self.blocks(latents))  # (B, 3 * f * f, h, w)
        return self.smooth(F.pixel_shuffle(patches, self.factor))


class ResidualBlock(nn.Module):
    """x + 1×1(silu(3×3(norm(x)))), the last convolution starting at zero. Shape kept."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv2d(width, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # over channels, free of copies in channels-last
        return x + self.out(F.silu(self.mix(normed)))


class PixelResidual(nn.Module):
    """pixels + 3×3(silu(3×3(pixels))), starting as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, 3, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels + self.out(F.silu(self.mix(pixels)))


@torch.no_grad()
def initialize(coders: Coders, patches: Tensor, weights: Tensor) -> None:
    """Make the network the principal-component projection of `patches` and back.

    patches: (N, 3 * f * f) float in [-1, 1], channel-major as `split_patches` gives them; weights: (N,) float, not negative.
    """
    encoder, decoder = coders.encoder, coders.decoder
    if not isinstance(encoder, PatchEncoder) or not isinstance(decoder, PatchDecoder):
        raise TypeError("principal components initialize the 'patch' network only")
    mean, components = principal_components(patches, weights, encoder.project.out_channels)  # (P,), (width, P)
    encoder.project.weight.copy_(components.view_as(encoder.project.weight))
    encoder.project.bias.copy_(-components @ mean)  # type: ignore[union-attr]
    decoder.project.weight.copy_(components.T[..., None, None])
    decoder.project.bias.copy_(mean)  # type: ignore[union-attr]
    for layer in (coders.to_code, coders.from_code):
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)  # the first codebook_dim components, and back
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def principal_components(points: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Weighted mean (P,) of points (N, P), and their first `count` principal directions (count, P), orthonormal.

    With `count` > P the rest are zeros.
    """
    share = (weights / weights.sum())[:, None]
    mean = (points * share).sum(0)
    centered = points - mean
    _, vectors = torch.linalg.eigh((centered * share).T @ centered)  # ascending
    directions = vectors.flip(1).T[:count]
    return mean, F.pad(directions, (0, 0, 0, count - directions.shape[0]))


def split_patches(pixels: Tensor, factor: int) -> Tensor:
    """Pixels (B, 3, Y, X) → patches (B * h * w, 3 * factor * factor), channel-major like a convolution's weight."""
    return rearrange(pixels, "b c (h i) (w j) -> (b h w) (c i j)", i=factor, j=factor)
