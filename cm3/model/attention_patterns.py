"""Which position may look at which, as pure functions from document ids to a boolean mask.

A pattern takes the ids (B, T) of the packed documents (or None) and the length T, and returns (B or 1, 1, T, T) bool, True
where query (row) may attend to key (column). The model turns it into the additive mask of SDPA and eager attention, or asks
for `document_mask_function` where FlexAttention builds its block mask. A new pattern is one function and one line of PATTERNS.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import Tensor


def causal(length: int, document_ids: Tensor | None, device: torch.device) -> Tensor:
    """Every token sees itself and earlier tokens, and only those of its own document.

    length: T; document_ids: (B, T) int, equal inside a document (padding may carry any id), or None for one document per
    row. Returns (B, 1, T, T) bool, or (1, 1, T, T) without ids. The diagonal is always True, so no softmax row is empty.
    """
    position = torch.arange(length, device=device)
    visible = (position[:, None] >= position[None, :])[None, None]  # (1, 1, T, T)
    if document_ids is None:
        return visible
    return visible & (document_ids[:, None, :, None] == document_ids[:, None, None, :])  # (B, 1, T, T)


def document_mask_function(document_ids: Tensor) -> Callable[..., Tensor]:
    """The same restriction index by index, for transformers' mask builders: (b, head, query, key) → same document?"""

    def same_document(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return document_ids[batch, query] == document_ids[batch, key]

    return same_document


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean mask → 0 where visible and -inf elsewhere, in the dtype of the attention scores (same shape)."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


PATTERNS = MappingProxyType({"causal": causal})
