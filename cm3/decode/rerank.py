"""Choosing among candidates: by any score, by a `Reranker`, or by how well the model itself says the text back.

CM3Leon and its peers draw several pictures per prompt and keep the one CLIP likes best; `sequence_log_prob` of the caption
given each picture needs no second model (both arXiv:2309.02591 section 3.1 and its references).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cm3.core.errors import NonFiniteError, UsageError
from cm3.core.protocols import Reranker

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Ranking:
    """scores: one per candidate, in the order they were made, higher is better; order: candidate numbers, best first."""

    scores: tuple[float, ...]
    order: tuple[int, ...]

    @property
    def best(self) -> int:
        """Number of the best candidate."""
        return self.order[0]


def rank(scores: Tensor | Sequence[float]) -> Ranking:
    """Order N ≥ 1 candidates by their scores; equal scores keep the order of drawing.

    Raises `NonFiniteError` when a score is NaN, which has no place in an order.
    """
    values = torch.as_tensor(scores, dtype=torch.float64).flatten()
    if bool(values.isnan().any()):
        raise NonFiniteError(f"the score of candidate {int(values.isnan().nonzero()[0])} is NaN; the reranker is broken")
    order = values.argsort(descending=True, stable=True)
    return Ranking(tuple(values.tolist()), tuple(order.tolist()))


def rank_by_reranker(text: str, images: Sequence[Image], reranker: Reranker) -> Ranking:
    """Order candidate pictures for `text` by what `reranker` says. Raises `UsageError` unless it says a score for each."""
    scores = torch.as_tensor(reranker.score(text, images)).flatten()
    if len(scores) != len(images):
        raise UsageError(f"the reranker gave {len(scores)} scores for {len(images)} pictures; expected one for each")
    return rank(scores)
