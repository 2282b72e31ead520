"""Every setting of the package: run files of training and building, and how neighbors are chosen. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from cm3.core.runfile import RunConfig, validate
from cm3.train.config import TrainConfig
from retrieval.encoders.presets import EncoderShape, encoder_shape


class TrainEncoderConfig(RunConfig):
    """Run file of an encoder training.

    data: folder, WebDataset, table or JSONL of pictures with texts; out: folder to write.
    preset: a name in `ENCODER_PRESETS`; shape: changes to it ({"image_size": 64}).
    batch_size: pairs per step over all processes and micro-batches; each is contrasted with those of its micro-batch on all
        processes. chunk_size: pairs that go through the towers at a time, which bounds memory at the cost of a second
        forward pass: large batches by this, not by accumulation.
    hard_texts: also contrast every picture with its own text with one word exchanged, which teaches what belongs to what.
    temperature: the initial one; it is learned.
    held_out_fraction: pairs kept out of training and used for evaluation, chosen by id; held_out: at most that many are used.
    """

    data: str | None = None
    out: str | None = None
    preset: str = "tiny"
    shape: dict[str, Any] = Field(default_factory=dict)
    batch_size: int = Field(default=128, ge=2)
    chunk_size: int | None = Field(default=None, ge=1)
    hard_texts: bool = True
    temperature: float = Field(default=0.07, gt=0)
    held_out: int = Field(default=256, ge=0)
    held_out_fraction: float = Field(default=0.02, ge=0, le=0.5)
    train: TrainConfig = TrainConfig(
        steps=600,
        learning_rate=4e-3,
        betas=(0.9, 0.98),
        weight_decay=0.1,
        warmup_steps=30,
        schedule="wsd",
        decay_fraction=0.5,
        checkpoint_every=0,
    )

    def resolve(self) -> EncoderShape:
        """The network to train: the preset with the changes. Raises `UsageError` when they do not fit together."""
        return validate(EncoderShape, {**encoder_shape(self.preset).model_dump(), **self.shape}, "shape")


class BuildConfig(RunConfig):
    """How a memory bank is built.

    index: a name in `INDEXES`, or "auto" for the rule of `choose_index`; seed: of what an index draws while it is built.
    memory_limit_gib: what building the index and searching it may take; None: no limit. An index that would need more is
        refused with its estimate before it is built.
    target_recall: an approximate index looks no further than finds this share of what an exact search finds;
    min_recall: one that then finds less than this on other queries is not published.
    batch_size: documents encoded together. max_image_side: larger pictures are stored reduced (None: as they are).
    embed_encoder: carry a copy of the encoder; False for a bank that will lie beside its encoder, as in a model folder.
    max_documents: take only the first ones.
    budget: a larger share of rejected records among those that were read is an error.
    device: where the encoder runs: "cpu", "cuda", "cuda:1" …; it changes the last bits of vectors, and nothing else.
    """

    index: str = "auto"
    seed: int = Field(default=0, ge=0)
    memory_limit_gib: float | None = Field(default=None, gt=0)
    target_recall: float = Field(default=0.97, gt=0, le=1)
    min_recall: float = Field(default=0.95, ge=0, le=1)
    batch_size: int = Field(default=256, ge=1)
    max_image_side: int | None = Field(default=512, ge=8)
    embed_encoder: bool = True
    max_documents: int | None = Field(default=None, ge=1)
    budget: float = Field(default=0.01, ge=0, le=1)
    device: str = "cpu"


class RetrieverConfig(RunConfig):
    """How neighbors of a document are chosen (`cm3leon` and `ra_cm3` give the two published settings).

    query: which part of a document asks: its "text", its "image", "both" as one vector, "either" (one of the two, drawn per
        document; never the full pair, as in RA-CM3), or "each" (both ask apart and their answers alternate, as in CM3Leon).
    query_dropout: share of the words, or of the cells of an 8×8 grid over the picture, removed from a query.
    max_similarity: a candidate more similar than this to the query, or to a neighbor already taken, is passed over.
    prefer_whole: documents with both text and pictures go before the others.
    candidates: how many nearest documents are looked at.
    seed: of every draw; the draws of a document depend on its id and not on what else is asked.
    """

    query: Literal["text", "image", "both", "either", "each"] = "each"
    query_dropout: float = Field(default=0.2, ge=0, lt=1)
    max_similarity: float = Field(default=0.9, ge=-1)
    prefer_whole: bool = True
    candidates: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)

    @classmethod
    def cm3leon(cls, seed: int = 0) -> RetrieverConfig:
        """CM3Leon (arXiv:2309.02591): text and picture ask apart, 20 % query dropout, nothing above 0.9."""
        return cls(query="each", seed=seed)

    @classmethod
    def ra_cm3(cls, seed: int = 0) -> RetrieverConfig:
        """RA-CM3 (arXiv:2211.12561): text or picture asks, relevance alone ranks, 20 % query dropout, nothing above 0.9."""
        return cls(query="either", prefer_whole=False, seed=seed)
