"""How well a score ranks the right items first: recall@k and mean reciprocal rank.

`scores` is (Q, N) float, higher is better. `targets` says what is right: (Q,) int, the one right item of each query, or (Q, N)
bool, any number of them (then the best ranked one counts; every query needs at least one). Ties count against the score,
so that a constant score does not look perfect.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cm3.core.errors import UsageError


def target_ranks(scores: Tensor, targets: Tensor) -> Tensor:
    """The rank of the best right item of each query, from 1. (Q,) int64

    Raises `UsageError` when the shapes do not fit, a query has no right item, or a score is NaN.
    """
    relevant = _relevance(scores, targets)
    if scores.isnan().any():
        raise UsageError("a score is NaN; the ranking has no meaning")
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)  # (Q, 1)
    return 1 + ((scores >= best) & ~relevant).sum(dim=1)


def recall_at_k(scores: Tensor, targets: Tensor, k: int) -> float:
    """The share of queries with a right item among the `k` best, in [0, 1]."""
    return float((target_ranks(scores, targets) <= k).double().mean())


def mean_reciprocal_rank(scores: Tensor, targets: Tensor) -> float:
    """The mean over queries of 1 / rank, in (0, 1]."""
    return float(target_ranks(scores, targets).double().reciprocal().mean())


def _relevance(scores: Tensor, targets: Tensor) -> Tensor:
    if scores.ndim != 2 or not scores.numel():
        raise UsageError(f"scores have shape {tuple(scores.shape)}, expected (Q, N) with at least one of each")
    if targets.dtype != torch.bool:
        if targets.shape != scores.shape[:1] or int(targets.min()) < 0 or int(targets.max()) >= scores.shape[1]:
            raise UsageError(f"targets must be (Q,) items in [0, {scores.shape[1]}), got shape {tuple(targets.shape)}")
        items = torch.arange(scores.shape[1], device=scores.device)
        targets = targets.unsqueeze(1) == items
    if targets.shape != scores.shape or not bool(targets.any(dim=1).all()):
        raise UsageError("targets must be (Q, N) bool with at least one right item per query")
    return targets
