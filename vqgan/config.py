"""Configurations of image tokenizers and of their training. Imports no torch.

`VQConfig` describes a tokenizer and is what its `config.json` holds; `VQTrainConfig` is the run file of a training:
`preset` gives a `VQConfig`, the keys beside it change single values of it.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import Field, model_validator

from cm3.core.errors import UsageError
from cm3.core.runfile import RunConfig, validate
from cm3.train.config import TrainConfig

TRAIN_DEFAULTS = {"steps": 400, "learning_rate": 2e-3, "weight_decay": 0.0, "warmup_steps": 20, "checkpoint_every": 0}

LPIPS_SIDE = 16  # the smallest picture that the four poolings of VGG16 leave something of

Options = TypeVar("Options", bound=RunConfig)


class PreprocessConfig(RunConfig):
    """How a picture of any size becomes a square: the same in training and inference.

    `fit` "crop" scales the middle square (in whole pixels), "pad" scales the long side and fills up with `background`, "stretch"
    ignores the aspect. A picture that already has the right size is never touched. `resample` "nearest" suits
    pixel art, "lanczos" everything else.
    """

    fit: Literal["crop", "pad", "stretch"] = "crop"
    resample: Literal["lanczos", "bicubic", "box", "nearest"] = "lanczos"
    background: tuple[int, int, int] = (255, 255, 255)


class VQConfig(RunConfig):
    """One image tokenizer.

    `image_size` pixels on a side become `image_size / downsample_factor` codes on a side, each in [0, codebook_size).
    `network` and `quantizer` are registry names (`vqgan.networks`, `vqgan.quantizers`); their options are checked by the
    chosen implementation. `codebook_dim` is the width of a code vector. `decoder` false: pictures become codes, and codes no
    pictures (a converted checkpoint that holds no decoder).
    """

    image_size: int = Field(48, ge=1, le=4096)
    downsample_factor: int = Field(8, ge=1)
    codebook_size: int = Field(512, ge=2)
    codebook_dim: int = Field(64, ge=1)
    network: str = "patch"
    network_options: dict[str, Any] = Field(default_factory=dict)
    quantizer: str = "ema"
    quantizer_options: dict[str, Any] = Field(default_factory=dict)
    preprocessing: PreprocessConfig = PreprocessConfig()
    decoder: bool = True

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Code rows and columns (h, w)."""
        side = self.image_size // self.downsample_factor
        return side, side

    @model_validator(mode="after")
    def _whole_grid(self) -> VQConfig:
        if self.image_size % self.downsample_factor:
            raise ValueError(f"image_size {self.image_size} is not a multiple of downsample_factor {self.downsample_factor}")
        return self


class LossConfig(RunConfig):
    """Weights of the training loss.

    `l1`, `l2`: per-pixel errors (on drawings both together gave half a decibel more than L1 alone); `logit_laplace`: the
    likelihood of the dVAE, whose decoder emits what it needs. `perceptual` "edges" compares image gradients at several scales
    (needs no weights), "lpips" VGG16 features (weights from `lpips_weights`). `adversarial` > 0 adds a PatchGAN from step
    `adversarial_start` on, times the adaptive factor of VQGAN when `adaptive_weight`; `lecam` > 0 regularizes the
    discriminator. `quantizer`: weight of the quantizer's own loss (commitment, codebook, entropy). `region_emphasis`: how many
    times more the regions count that documents name (`vqgan.regions`), in every term but the adversarial one.
    """

    l1: float = Field(0.5, ge=0)
    l2: float = Field(2.0, ge=0)
    logit_laplace: float = Field(0.0, ge=0)
    perceptual: Literal["none", "edges", "lpips"] = "none"
    perceptual_weight: float = Field(1.0, ge=0)
    lpips_weights: str | None = None
    quantizer: float = Field(1.0, ge=0)
    adversarial: float = Field(0.0, ge=0)
    adversarial_start: int = Field(10_000, ge=0)
    adaptive_weight: bool = True
    discriminator_channels: int = Field(64, ge=1)
    discriminator_layers: int = Field(3, ge=1)
    lecam: float = Field(0.0, ge=0)
    region_emphasis: float = Field(1.0, ge=1)

    @model_validator(mode="after")
    def _weights_for_lpips(self) -> LossConfig:
        if self.perceptual != "lpips" and self.lpips_weights is not None:
            raise ValueError(
                f"lpips_weights go with perceptual 'lpips', got {self.perceptual!r}; set that, or leave the weights out"
            )
        if self.perceptual == "lpips" and self.lpips_weights is None:
            raise ValueError("perceptual 'lpips' needs lpips_weights; make the file with `cm3 vqgan convert`, or take 'edges'")
        return self

    @model_validator(mode="after")
    def _lecam_of_a_discriminator(self) -> LossConfig:
        if self.lecam and not self.adversarial:
            raise ValueError("lecam regularizes the discriminator, which adversarial 0 leaves out; set both or neither")
        return self

    def require_start(self, steps: int) -> None:
        """Raise `UsageError` when the discriminator would not start within `steps`."""
        if self.adversarial and self.adversarial_start >= steps:
            raise UsageError(
                f"loss.adversarial_start={self.adversarial_start} comes after the last of train.steps={steps}, so the "
                "discriminator would never start; set it lower, train more steps, or leave loss.adversarial out"
            )

    def require_side(self, image_size: int) -> None:
        """Raise `UsageError` when pictures of `image_size` pixels on a side are too small for LPIPS or the discriminator."""
        if self.perceptual == "lpips" and image_size < LPIPS_SIDE:
            raise UsageError(
                f"loss.perceptual 'lpips' needs pictures of {LPIPS_SIDE} pixels and more, got image_size {image_size}; "
                "take loss.perceptual='edges', or a larger image_size"
            )
        least = 3 * 2**self.discriminator_layers  # so many halvings, then two convolutions that each take one off
        if self.adversarial and image_size < least:
            raise UsageError(
                f"a discriminator of {self.discriminator_layers} layers needs pictures of {least} pixels and more, "
                f"got image_size {image_size}; set fewer loss.discriminator_layers, loss.adversarial=0, or a larger image_size"
            )


class VQTrainConfig(RunConfig):
    """Run file of a tokenizer training.

    `data`: folder, WebDataset or JSONL of pictures (`vqgan.pictures` says what is taken from it); `out`: folder to write.
    `preset` names a `VQConfig` in `vqgan.presets`; `image_size`, `downsample_factor`, `codebook_size` and `tokenizer` (any
    other of its keys) change it. `validation_fraction` of the pictures, chosen by their id, is held out for evaluation
    (0: evaluations have no figures).
    `batch_size` counts pictures over all processes and micro-batches. `flip` mirrors half of them.
    `memory_limit_gib`: pixels beyond this lie in a scratch file instead of in memory. `workers` threads decode pictures;
    `draft` lets them decode large JPEGs at a fraction of their size: faster, slightly other pixels.
    """

    data: str | None = None
    out: str | None = None
    preset: str = "tiny"
    image_size: int | None = None
    downsample_factor: int | None = None
    codebook_size: int | None = None
    tokenizer: dict[str, Any] = Field(default_factory=dict)
    max_images: int | None = Field(None, ge=1)
    validation_fraction: float = Field(0.02, ge=0, le=0.5)
    validation_images: int = Field(256, ge=0)
    batch_size: int = Field(64, ge=1)
    flip: bool = False
    memory_limit_gib: float = Field(2.0, ge=0)
    workers: int = Field(1, ge=1)
    draft: bool = False
    initialize_from_data: bool = True
    freeze_encoder: bool = False
    loss: LossConfig = Field(default_factory=lambda: LossConfig.model_validate({}))
    train: TrainConfig = TrainConfig.model_validate(TRAIN_DEFAULTS)

    @model_validator(mode="after")
    def _regions_of_whole_pictures(self) -> VQTrainConfig:
        if self.draft and self.loss.region_emphasis != 1:
            raise ValueError("draft=true decodes pictures smaller, loss.region_emphasis needs whole ones; leave out one of them")
        return self

    def resolve(self) -> VQConfig:
        """The tokenizer this run trains: the preset with the changes.

        Raises `UsageError` when they don't fit together, there is no decoder to compare the pictures of, the loss leaves half of
        what the network emits without gradient, its discriminator would never start, or the pictures are too small for a network
        of the loss.
        """
        from vqgan.presets import preset

        changes = {key: getattr(self, key) for key in ("image_size", "downsample_factor", "codebook_size")}
        changes = {key: value for key, value in changes.items() if value is not None}
        tokenizer = checked(VQConfig, {**preset(self.preset).model_dump(), **self.tokenizer, **changes}, "tokenizer")
        if not tokenizer.decoder:
            raise UsageError("a tokenizer learns by its decoder's pictures; decoder=false can't be trained, leave it out")
        if tokenizer.network == "dvae" and not self.loss.logit_laplace:
            raise UsageError(
                "network 'dvae' emits means and scales, and with loss.logit_laplace 0 nothing trains the scales; "
                "set loss.logit_laplace=1 (its paper has that alone: loss.l1=0 loss.l2=0)"
            )
        self.loss.require_start(self.train.steps)
        self.loss.require_side(tokenizer.image_size)
        return tokenizer


def checked(model: type[Options], values: dict[str, Any], where: str) -> Options:
    """`values` as a `model`; raises `UsageError` naming the wrong keys of section `where`."""
    return validate(model, values, where)
