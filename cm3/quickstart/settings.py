"""The settings of every stage, as the run-file models of the packages: nothing here that a user could not write down.

Step counts are for the reference budget (`cm3.quickstart.config`). Two sets: the embedded world, whose aligned shapes need a
codebook of all its patches and a model that binds words to places, and pictures from outside, which need finer codes. The small
tokenizers and encoders train in fp32 on every machine: bf16 saves no time at their size and costs detail (emoji: SSIM 0.68,
not 0.71).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cm3.pretrain.objective import LossConfig
from cm3.pretrain.run import ModelSection, NeighborSection, PretrainConfig
from cm3.quickstart.config import QuickstartConfig, training
from cm3.scenes.world import WorldConfig
from cm3.sequences.augmentation import AugmentationConfig
from cm3.sequences.loader import LoaderConfig
from cm3.sequences.objectives import ObjectiveConfig
from cm3.train.config import TrainConfig
from retrieval.config import BuildConfig, TrainEncoderConfig
from sft.mixture import MixtureEntry
from sft.train import SFTConfig
from vqgan.config import VQTrainConfig

TEXT_VOCAB_SIZE = {"scenes": 400, "pictures": 4096}
NUM_NEIGHBORS = 2
OPTIMIZER = {"optimizer": "muon", "learning_rate": 8e-3, "weight_decay": 0.1}


@dataclass(frozen=True)
class Places:
    """Where the artefacts of a quickstart lie."""

    out: Path

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def pairs(self) -> Path:
        """Training pairs of caption and picture."""
        return self.data / "pairs" / "train"

    @property
    def held_out_pairs(self) -> Path:
        """Pairs that no training sees; in the embedded world with combinations that no training picture has."""
        return self.data / "pairs" / "test"

    @property
    def image_tokenizer(self) -> Path:
        return self.out / "image_tokenizer"

    @property
    def encoder(self) -> Path:
        return self.out / "encoder"

    def run_of(self, artefact: Path) -> Path:
        """Where the checkpoints and metrics of the training that makes `artefact` lie."""
        return artefact.with_name(f"{artefact.name}-run")

    @property
    def memory(self) -> Path:
        return self.out / "memory"

    @property
    def document_tokenizer(self) -> Path:
        return self.out / "document_tokenizer"

    @property
    def tokens(self) -> Path:
        return self.out / "tokens"

    @property
    def held_out_tokens(self) -> Path:
        return self.out / "held_out_tokens"

    @property
    def neighbors(self) -> Path:
        return self.out / "neighbors"

    @property
    def pretrained(self) -> Path:
        return self.out / "pretrained"

    @property
    def tuned(self) -> Path:
        return self.out / "tuned"

    @property
    def model(self) -> Path:
        return self.out / "model"

    @property
    def evaluation(self) -> Path:
        return self.out / "evaluation"


@dataclass(frozen=True)
class Settings:
    """Every stage's settings for one quickstart; `tasks` are those the data allows."""

    world: WorldConfig
    num_train: int
    num_held_out: int
    image_tokenizer: VQTrainConfig
    encoder: TrainEncoderConfig
    memory: BuildConfig
    text_vocab_size: int
    pretraining: PretrainConfig
    tuning: SFTConfig


def settings_for(config: QuickstartConfig, places: Places) -> Settings:
    """The settings of all stages: those of the embedded world, or of the user's pictures when `config.data` is set."""
    return _scenes(config, places) if config.data is None else _pictures(config, places)


def _scenes(config: QuickstartConfig, places: Places) -> Settings:
    mixture = (
        _entry("text_to_image", places.data / "pairs", 2.75),
        _entry("captioning", places.data / "pairs", 0.75),
        _entry("vqa", places.data / "vqa", 3.25, loss_weight=6.0, options={"questions_per_image": 5}),
        _entry("editing", places.data / "edits", 2.25),
        _entry("infilling", places.data / "pairs", 0.75),
    )
    return Settings(
        world=WorldConfig(),
        num_train=config.size(13_500, least=64),
        num_held_out=max(config.held_out, 256) if config.scale >= 0.2 else config.held_out,
        image_tokenizer=VQTrainConfig(
            preset="quickstart",
            max_images=4096,
            train=TrainConfig(**training(config, 150, precision="fp32", learning_rate=2e-3, weight_decay=0.0, schedule="cosine")),
        ),
        encoder=TrainEncoderConfig(
            preset="tiny",
            hard_texts=False,
            train=TrainConfig(
                **training(
                    config,
                    180,
                    precision="fp32",
                    optimizer="muon",
                    learning_rate=3e-3,
                    betas=(0.9, 0.98),
                    schedule="wsd",
                    decay_fraction=0.5,
                )
            ),
        ),
        memory=BuildConfig(embed_encoder=False),
        text_vocab_size=TEXT_VOCAB_SIZE["scenes"],
        pretraining=_pretraining(config, places, row_length=256, batch_size=16, steps=500),
        tuning=_tuning(config, places, mixture, row_length=192, batch_size=16, steps=2000),
    )


def _pictures(config: QuickstartConfig, places: Places) -> Settings:
    row_length = 512
    mixture = (
        _entry("text_to_image", places.data / "pairs", 4.0),
        _entry("captioning", places.data / "pairs", 1.5),
        _entry("infilling", places.data / "pairs", 1.0),
    )
    return Settings(
        world=WorldConfig(),
        num_train=0,
        num_held_out=config.held_out,
        image_tokenizer=VQTrainConfig(
            preset="pictures",
            train=TrainConfig(**training(config, 300, precision="fp32", learning_rate=3e-3, weight_decay=0.0, schedule="cosine")),
        ),
        encoder=TrainEncoderConfig(
            preset="tiny",
            shape={"image_size": 64},
            hard_texts=False,
            train=TrainConfig(
                **training(
                    config,
                    600,
                    precision="fp32",
                    learning_rate=2e-3,
                    betas=(0.9, 0.98),
                    schedule="wsd",
                    decay_fraction=0.5,
                )
            ),
        ),
        memory=BuildConfig(embed_encoder=False),
        text_vocab_size=TEXT_VOCAB_SIZE["pictures"],
        pretraining=_pretraining(config, places, row_length, batch_size=8, steps=800),
        tuning=_tuning(config, places, mixture, row_length, batch_size=8, steps=800),
    )


def _pretraining(config: QuickstartConfig, places: Places, row_length: int, batch_size: int, steps: int) -> PretrainConfig:
    objective = ObjectiveConfig(name="cm3", count_law="metaseq", span_rate=0.5, whole_segment_prob=0.2, image_first_prob=0.25)
    return PretrainConfig(
        tokens=places.tokens,
        tokenizer=places.document_tokenizer,
        out=places.pretrained,
        held_out=places.held_out_tokens,
        neighbors=NeighborSection(
            table=places.neighbors,
            share=0.1,
            augmentation=AugmentationConfig(law="ra_cm3", max_length=row_length - 48),
        ),
        model=ModelSection(preset="tiny", overrides={"max_position_embeddings": 1024}),
        loader=LoaderConfig(row_length=row_length, batch_size=batch_size, objective=objective, overlong="skip"),
        loss=LossConfig(),
        train=TrainConfig(**training(config, steps, **OPTIMIZER, schedule="constant")),
    )


def _tuning(
    config: QuickstartConfig,
    places: Places,
    mixture: tuple[MixtureEntry, ...],
    row_length: int,
    batch_size: int,
    steps: int,
) -> SFTConfig:
    return SFTConfig(
        model=places.pretrained,
        out=places.tuned,
        image_tokenizer=places.image_tokenizer,
        mixture=mixture,
        loader=LoaderConfig(
            row_length=row_length, batch_size=batch_size, objective=ObjectiveConfig(name="causal"), overlong="skip"
        ),
        train=TrainConfig(**training(config, steps, **OPTIMIZER, schedule="wsd", decay_fraction=0.5)),
    )


def _entry(task: str, data: Path, weight: float, loss_weight: float = 1.0, options: dict[str, Any] | None = None) -> MixtureEntry:
    return MixtureEntry(
        task=task,
        data=data / "train",
        held_out=data / "validation",
        weight=weight,
        loss_weight=loss_weight,
        options=options or {},
    )
