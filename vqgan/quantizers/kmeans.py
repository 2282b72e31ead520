"""Weighted k-means with k-means++ seeding: the start of a codebook.

Seeds are drawn in proportion to weight × squared distance from the seeds so far (Arthur & Vassilvitskii 2007), so that rare
but different vectors get a code of their own; many are drawn per round when the codebook is large (as in k-means||).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vqgan.quantizers.nearest import nearest_codes

_ROUNDS = 512


@torch.no_grad()
def kmeans(points: Tensor, count: int, weights: Tensor, generator: torch.Generator, iterations: int = 10) -> Tensor:
    """(count, D) centers of points (N, D) with weights (N,) >= 0, on the CPU in float32 whatever the points are.

    With fewer distinct points than centers, the rest repeat points.
    """
    points, weights = points.detach().float().cpu(), weights.float().cpu()
    centers = _seeds(points, count, weights, generator)
    for _ in range(iterations):
        nearest = nearest_codes(points, centers)
        mass = torch.zeros(count).index_add_(0, nearest, weights)
        total = torch.zeros_like(centers).index_add_(0, nearest, points * weights[:, None])
        used = mass > 0
        centers[used] = total[used] / mass[used, None]
    return centers


def _seeds(points: Tensor, count: int, weights: Tensor, generator: torch.Generator) -> Tensor:
    per_round = max(1, count // _ROUNDS)
    chosen = [torch.multinomial(weights, 1, generator=generator)]
    square = points.square().sum(1)  # (N,)
    distance = _distance(points, square, chosen[0])
    missing = count - 1
    while missing > 0:
        chances = distance * weights
        candidates = int((chances > 0).sum())
        if candidates == 0:  # every distinct point is a seed already
            chosen.append(torch.multinomial(weights, missing, replacement=True, generator=generator))
            break
        drawn = torch.multinomial(chances, min(per_round, missing, candidates), generator=generator)
        chosen.append(drawn)
        distance = torch.minimum(distance, _distance(points, square, drawn))
        missing -= drawn.shape[0]
    return points[torch.cat(chosen)].clone()


def _distance(points: Tensor, square: Tensor, seeds: Tensor) -> Tensor:
    """(N,) squared distance of every point to the nearest of points[seeds]; differences within rounding count as none."""
    product = points @ points[seeds].T  # (N, S)
    nearest = (square[:, None] - 2 * product + square[seeds]).amin(1)
    return torch.where(nearest > 1e-5 * square.mean(), nearest, 0.0)
