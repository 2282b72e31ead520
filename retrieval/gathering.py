"""The vectors of all processes together, so that every pair is contrasted with those of the whole step.

Gradients flow back to the process that made a vector: averaged over processes, as distributed training does, they are exactly
those of one process with all pairs. In a single process nothing is gathered.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from retrieval.contrastive import Candidates


def gather_candidates(images: Tensor, texts: Tensor, keys: Tensor) -> tuple[Candidates, Tensor]:
    """This process's images, texts (B, E) and keys (B, 2) → those of all processes (G, E), (G, E) and (G, 2), in their order.

    All processes must have equally many.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Candidates(images, texts, 0), keys
    first = torch.distributed.get_rank() * len(images)
    return Candidates(_Gathered.apply(images), _Gathered.apply(texts), first), _Gathered.apply(keys)


class _Gathered(torch.autograd.Function):
    """Rows (B, …) of this process → those of all (G, …). Backwards a process gets what all of them want of its rows, summed.

    torch has this in `torch.distributed.nn`, which is deprecated, and in private modules.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total.chunk(torch.distributed.get_world_size())[torch.distributed.get_rank()]
