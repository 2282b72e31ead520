"""The convolutional encoder and decoder of VQGAN (taming-transformers, arXiv:2012.09841), shared by LDM, Chameleon and LlamaGen.

Parameter names below `encoder` and `decoder` are those of the original checkpoints, which makes conversion a renaming
of the rest. Levels count from full resolution; every level but the last halves the side.
"""

from __future__ import annotations

from itertools import pairwise

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cm3.core.errors import UsageError
from cm3.core.runfile import RunConfig
from vqgan.config import VQConfig, checked
from vqgan.networks.coders import Coders
from vqgan.networks.group_norm import GroupNorm


class TamingOptions(RunConfig):
    """`channels` of the first level, times `channel_multipliers` per level; `residual_blocks` per encoder level (the decoder
    has one more); attention after every block of `attention_levels`, and in the middle when `middle_attention`;
    `latent_channels` between encoder and 1×1 map. All widths are multiples of `groups`."""

    channels: int = Field(128, ge=1)
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    residual_blocks: int = Field(2, ge=1)
    attention_levels: tuple[int, ...] = ()
    middle_attention: bool = True
    latent_channels: int = Field(256, ge=1)
    groups: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level, from full resolution down."""
        return tuple(self.channels * multiplier for multiplier in self.channel_multipliers)

    @model_validator(mode="after")
    def _whole_groups(self) -> TamingOptions:
        if self.channels % self.groups:
            raise ValueError(f"channels {self.channels} is not a multiple of groups {self.groups}")
        if not all(0 <= level < len(self.channel_multipliers) for level in self.attention_levels):
            raise ValueError(f"attention_levels {self.attention_levels} name a level that channel_multipliers doesn't have")
        return self


def build(config: VQConfig) -> Coders:
    """Encoder and decoder of `config`; `network_options` as `TamingOptions`. Raises `UsageError` when the factor differs."""
    options = checked(TamingOptions, config.network_options, "network_options of 'taming'")
    factor = 2 ** (len(options.channel_multipliers) - 1)
    if factor != config.downsample_factor:
        raise UsageError(
            f"network 'taming' with {len(options.channel_multipliers)} channel_multipliers reduces by {factor}, but "
            f"downsample_factor is {config.downsample_factor}; give one multiplier more than its power of two"
        )
    return Coders(
        encoder=TamingEncoder(options),
        decoder=TamingDecoder(options),
        to_code=nn.Conv2d(options.latent_channels, config.codebook_dim, 1),
        from_code=nn.Conv2d(config.codebook_dim, options.latent_channels, 1),
    )


class TamingEncoder(nn.Module):
    """Pixels (B, 3, Y, X) → (B, latent_channels, Y / factor, X / factor)."""

    def __init__(self, options: TamingOptions) -> None:
        super().__init__()
        widths = options.widths
        self.conv_in = nn.Conv2d(3, options.channels, 3, padding=1)
        inputs = (options.channels, *widths[:-1])
        self.down = nn.ModuleList(
            _level(options, level, inputs[level], options.residual_blocks, _Downsample(width) if width_after else None)
            for level, (width, width_after) in enumerate(zip(widths, (*widths[1:], None)))
        )
        self.mid = _Middle(widths[-1], options)
        self.norm_out = _norm(widths[-1], options)
        self.conv_out = nn.Conv2d(widths[-1], options.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out.silu(self.mid(x), overwrite=True))


class TamingDecoder(nn.Module):
    """(B, latent_channels, h, w) → pixels (B, 3, h * factor, w * factor), not clamped."""

    def __init__(self, options: TamingOptions) -> None:
        super().__init__()
        widths = options.widths
        self.conv_in = nn.Conv2d(options.latent_channels, widths[-1], 3, padding=1)
        self.mid = _Middle(widths[-1], options)
        inputs = (*widths[1:], widths[-1])
        self.up = nn.ModuleList(  # stored from full resolution down, run the other way
            _level(options, level, inputs[level], options.residual_blocks + 1, _Upsample(width) if level else None)
            for level, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0], options)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    @property
    def last_weight(self) -> Tensor:
        return self.conv_out.weight

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out.silu(x, overwrite=True))


class _Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if there is any, then a change of resolution."""

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(attentions)
        if isinstance(resample, _Downsample):
            self.downsample = resample
        elif resample is not None:
            self.upsample = resample
        self._resample = "downsample" if isinstance(resample, _Downsample) else "upsample" if resample is not None else None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x if self._resample is None else getattr(self, self._resample)(x)


def _level(options: TamingOptions, level: int, width_in: int, count: int, resample: nn.Module | None) -> _Level:
    width = options.widths[level]
    blocks: list[nn.Module] = [_ResidualBlock(before, after, options) for before, after in pairwise([width_in] + [width] * count)]
    attentions: list[nn.Module] = [_Attention(width, options) for _ in blocks] if level in options.attention_levels else []
    return _Level(blocks, attentions, resample)


class _Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, width: int, options: TamingOptions) -> None:
        super().__init__()
        self.block_1 = _ResidualBlock(width, width, options)
        self.attn_1 = _Attention(width, options) if options.middle_attention else nn.Identity()
        self.block_2 = _ResidualBlock(width, width, options)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width: int, options: TamingOptions) -> None:
        super().__init__()
        self.norm1 = _norm(width_in, options)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm2 = _norm(width, options)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        if width_in != width:
            self.nin_shortcut = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1.silu(x))
        h = self.conv2(self.dropout(self.norm2.silu(h, overwrite=True)))
        return h.add_(self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)  # nothing else needs conv2's output


class _Attention(nn.Module):
    """Single-head attention over all grid positions, residual."""

    def __init__(self, width: int, options: TamingOptions) -> None:
        super().__init__()
        self.norm = _norm(width, options)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).mT[:, None] for layer in (self.q, self.k, self.v))  # (B, 1, h * w, C)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape)
        return x + self.proj_out(mixed)


class _Downsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as the original does


class _Upsample(nn.Module):
    """Twice the side by nearest neighbors, then a 3×3 convolution: in one step, from the lower resolution.

    A place of the small picture reaches 4×4 of the large one, with sums of the 3×3 weights: a transposed convolution of stride 2,
    with 4/9 of the multiplications.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, h, w) → (B, C, 2h, 2w)
        weight = self.conv.weight
        summed = weight.flatten(2) @ weight.new_tensor(_REACH)  # (C, C, 16)
        return F.conv_transpose2d(x, summed.unflatten(2, (4, 4)).transpose(0, 1), self.conv.bias, stride=2, padding=1)


def _reach() -> list[list[int]]:
    """(9, 16): which weights of 3×3 a value, doubled, brings to each of the 4×4 places around it."""
    line = [[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]]  # of three weights in a line, to each of four places
    return [[a * b for a in row for b in column] for row in line for column in line]


_REACH = _reach()


def _norm(width: int, options: TamingOptions) -> GroupNorm:
    return GroupNorm(options.groups, width, eps=1e-6)
