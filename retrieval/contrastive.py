"""The contrastive loss of CLIP (arXiv:2103.00020): every picture must find its text in the batch, and every text its picture.

Pure functions of unit vectors. Pairs that show the same picture or say the same words are no negatives of each other.
Shape letters: B pairs here, G pairs of all processes together (B when there is one), E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_EXCLUDED = -1e4  # a logit this low has no weight, and its gradient is finite, unlike that of -inf


@dataclass(frozen=True)
class Candidates:
    """What to choose among: images, texts (G, E), pair by pair; the pairs here are those from number `first` on."""

    images: Tensor
    texts: Tensor
    first: int


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    alike: Tensor,
    hard_texts: Tensor | None = None,
    candidates: Candidates | None = None,
) -> Tensor:
    """Mean over both directions of the cross-entropy of finding the partner; a 0-d tensor.

    images, texts (B, E): unit vectors, pair by pair. scale (0-d): factor on the similarities, 1 / temperature.
    alike (B, G) bool: pairs that are no negatives of each other; a pair and itself do not count.
    hard_texts (B, E): for every picture a wrong text of its own, which it must also tell from the right one.
    candidates: by default these pairs themselves. The mean of this loss over processes is the loss of one with all pairs.
    """
    candidates = candidates or Candidates(images, texts, 0)
    partner = candidates.first + torch.arange(len(images), device=images.device)
    excluded = alike.scatter(1, partner[:, None], False)
    over_texts = (scale * images @ candidates.texts.T).masked_fill(excluded, _EXCLUDED)  # (B, G)
    over_images = (scale * texts @ candidates.images.T).masked_fill(excluded, _EXCLUDED)  # (B, G)
    if hard_texts is not None:
        own = scale * (images * hard_texts).sum(dim=1, keepdim=True)  # (B, 1)
        over_texts = torch.cat([over_texts, own], dim=1)  # (B, G + 1)
    return (F.cross_entropy(over_texts, partner) + F.cross_entropy(over_images, partner)) / 2


def alike_pairs(keys: Tensor, all_keys: Tensor) -> Tensor:
    """Keys (B, 2) and (G, 2) of pictures and texts → (B, G) bool: same picture or same text."""
    return (keys[:, None] == all_keys).any(dim=2)
