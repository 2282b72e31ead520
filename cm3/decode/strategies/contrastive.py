"""Contrastive decoding with the model as its own amateur (CD-K, arXiv:2309.02591 equation 3; Li et al., arXiv:2210.15097).

    score(t) = log p_cond(t) − scale · log p_unc(t)    for t with p_cond(t) ≥ alpha · (k-th largest p_cond), else −∞

k = 1 is the original rule. The paper gives no values for k and alpha; alpha 0.1 is the usual one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cm3.core.errors import UsageError
from cm3.decode.prompts import Prompt, Stream
from cm3.decode.strategies.scales import require_scale
from cm3.tokens.tokenized import SpanKind


@dataclass(frozen=True)
class Contrastive:
    """k, alpha: which tokens are plausible; scale: weight of the stream without condition (1: the paper's ratio, 0: the
    conditional stream among its plausible tokens); drop: the kind of segment that is the condition."""

    scale_is_guidance: ClassVar[bool] = False

    k: int = 1
    alpha: float = 0.1
    scale: float = 1.0
    drop: SpanKind = "text"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"contrastive k must be at least 1, got {self.k}")
        if not 0 < self.alpha <= 1:
            raise UsageError(f"contrastive alpha must lie in (0, 1], got {self.alpha}")
        require_scale("contrastive scale", self.scale)

    def streams(self, prompt: Prompt) -> list[Stream]:
        """The prompt, and the prompt without its condition."""
        return [prompt.stream(), prompt.without(self.drop)]

    def combine(self, logits: Tensor) -> Tensor:
        """(B, 2, V) → scores (B, V): log-ratios, not just up to a constant, since a repetition penalty asks for their sign."""
        conditional, without = logits.log_softmax(dim=-1).unbind(1)
        kth = conditional.topk(min(self.k, conditional.shape[-1]), dim=-1).values[:, -1:]  # (B, 1)
        implausible = conditional < kth + math.log(self.alpha)
        return (conditional - self.scale * without).masked_fill(implausible, -torch.inf)
