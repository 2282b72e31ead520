"""The contrastive loss of CLIP (arXiv:2103.00020): every picture must find its text in the batch, and every text its picture.

Pure functions of unit vectors. Pairs that show the same picture or say the same words are no negatives of each other.
Shape letters: B pairs of the batch, E embedding width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_EXCLUDED = -1e4  # a logit this low has no weight, and its gradient is finite, unlike that of -inf


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, alike: Tensor, hard_texts: Tensor | None = None) -> Tensor:
    """Mean over both directions of the cross-entropy of finding the partner; a 0-d tensor.

    images, texts (B, E): unit vectors, pair by pair. scale (0-d): factor on the similarities, 1 / temperature.
    alike (B, B) bool: pairs that are no negatives of each other; the diagonal does not count.
    hard_texts (B, E): for every picture a wrong text of its own, which it must also tell from the right one.
    """
    partner = torch.arange(len(images), device=images.device)
    off_diagonal = ~torch.eye(len(images), dtype=torch.bool, device=images.device)
    logits = (scale * images @ texts.T).masked_fill(alike & off_diagonal, _EXCLUDED)  # (B images, B texts)
    choices = logits
    if hard_texts is not None:
        own = scale * (images * hard_texts).sum(dim=1, keepdim=True)  # (B, 1)
        choices = torch.cat([logits, own], dim=1)  # (B, B + 1)
    return (F.cross_entropy(choices, partner) + F.cross_entropy(logits.T, partner)) / 2


def alike_pairs(image_keys: Tensor, text_keys: Tensor) -> Tensor:
    """(B,) keys of pictures and of texts → (B, B) bool: same picture or same text."""
    return (image_keys[:, None] == image_keys) | (text_keys[:, None] == text_keys)
