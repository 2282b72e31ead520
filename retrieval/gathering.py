"""The vectors of all processes together, so that every pair is contrasted with those of the whole step.

Gradients flow back to the process that made a vector: averaged over processes, as distributed training does, they are exactly
those of one process with all pairs. In a single process nothing is gathered.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from retrieval.contrastive import Candidates


def gather_candidates(images: Tensor, texts: Tensor, keys: Tensor) -> tuple[Candidates, Tensor]:
    """This process's images, texts (B, E) and keys (B, 2) → those of all processes (G, E), (G, E) and (G, 2), in their order.

    All processes must have equally many.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return Candidates(images, texts, 0), keys
    all_keys = [torch.empty_like(keys) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(all_keys, keys)
    first = torch.distributed.get_rank() * len(images)
    return Candidates(torch.cat(all_gather(images)), torch.cat(all_gather(texts)), first), torch.cat(all_keys)
