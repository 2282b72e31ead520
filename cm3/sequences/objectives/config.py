"""The settings of the training objectives, and what an objective is."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from cm3.core.runfile import RunConfig
from cm3.tokens import TokenizedDocument, Vocab

_SPANS = ("count_law", "span_rate", "max_spans", "whole_segment_prob")
_IDLE = {"causal": (*_SPANS, "sentinel_weight", "fill_rate"), "cm3": ("fill_rate",), "fill_in_middle": _SPANS}


class ObjectiveConfig(RunConfig):
    """How documents become training sequences.

    name: an entry of `OBJECTIVES`; count_law, span_rate, max_spans: how many spans are masked (`cm3.sequences.spans`);
    whole_segment_prob: how often the only span of a masked document is a whole text segment (this trains the stream that
    guidance subtracts); sentinel_weight: loss weight of `<mask:i>`, 0 or 1; fill_rate: share of documents that
    "fill_in_middle" changes; image_first_prob: how often a (text, image) pair is turned around first (a pair behind
    neighbors never is: a document does not tell which of its segments were retrieved). Settings that an objective does not
    read are refused beside it.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = "cm3"
    count_law: Literal["cm3", "metaseq"] = "cm3"
    span_rate: float = Field(default=1.0, ge=0)
    max_spans: int = Field(default=16, ge=1)
    whole_segment_prob: float = Field(default=0.0, ge=0, le=1)
    sentinel_weight: Literal[0, 1] = 0
    fill_rate: float = Field(default=0.5, ge=0, le=1)
    image_first_prob: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _all_are_used(self) -> ObjectiveConfig:
        self._refuse_idle("name", _IDLE)
        return self


class Objective(Protocol):
    """A pure function from a document to a training sequence.

    `counts` says beforehand how many spans each of `size` documents will have, so that rows can be planned without
    touching the documents; `count` hands that number back (None: draw it). Either may lower it, never raise it.
    """

    def counts(self, size: int, rng: np.random.Generator, config: ObjectiveConfig) -> np.ndarray:
        """(size,) int64, the number of spans of each document."""

    def __call__(
        self,
        document: TokenizedDocument,
        vocab: Vocab,
        rng: np.random.Generator,
        config: ObjectiveConfig,
        count: int | None = None,
    ) -> TokenizedDocument:
        """The training sequence, at most `3 * count` tokens longer than the document."""
