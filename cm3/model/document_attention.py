"""Attention of packed rows a document at a time, for back ends whose kernels cannot skip what a document mask hides.

    (B, T) packed rows → groups of documents of about equal length (n, L) → SDPA with its causal path → (B, T) again

A row of 512 tokens with six documents has a twelfth of its scores left to compute, and no mask of T × T stands in memory.
The back end is called "sdpa_by_document"; without document ids it is SDPA.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

BY_DOCUMENT = "sdpa_by_document"
LEAST_SHARE = 0.75  # a document shorter than this share of the longest one of its group starts another group
NARROW_HEAD = 64  # in bf16 the CPU kernel's backward pass is up to 2.5 times slower than in fp32 for heads narrower than this


@dataclass(frozen=True)
class PackedDocuments:
    """groups: token indices (n, L) int64 into the B · T tokens, one row per document; behind its end other tokens follow, which
    a causal pass does not let it see. places: (B · T,) int64, where each token stands among the results of all groups."""

    groups: tuple[Tensor, ...]
    places: Tensor


def pack_documents(document_ids: Tensor) -> PackedDocuments:
    """document_ids: (B, T) int; a document is a run of equal ids within a row, padding is one like any other."""
    starts_here = torch.ones_like(document_ids, dtype=torch.bool)
    starts_here[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = starts_here.flatten().nonzero()[:, 0]  # (documents,)
    total = document_ids.numel()
    lengths = torch.diff(starts, append=starts.new_tensor([total]))
    lengths, order = lengths.sort(descending=True)
    starts = starts[order]
    groups, places, offset = [], starts.new_empty(total), 0
    first, sizes = 0, lengths.tolist()
    while first < len(sizes):
        longest = sizes[first]
        behind = next((n for n in range(first, len(sizes)) if sizes[n] < LEAST_SHARE * longest), len(sizes))
        inside = torch.arange(longest, device=starts.device)
        tokens = starts[first:behind, None] + inside  # (n, L)
        own = (inside < lengths[first:behind, None]).flatten().nonzero()[:, 0]
        places[tokens.flatten()[own]] = own + offset
        groups.append(tokens.clamp_max(total - 1))
        offset, first = offset + tokens.numel(), behind
    return PackedDocuments(tuple(groups), places)


def attend_by_document(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: PackedDocuments | Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (B, H, T, K), key and value (B, G, T, K) in any float dtype → (B, T, H, K) in that of the query."""
    if not isinstance(mask, PackedDocuments):
        return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    tokens = [states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)]  # (B · T, H or G, K)
    in_fp32 = query.device.type == "cpu" and query.shape[-1] < NARROW_HEAD
    if in_fp32:
        tokens = [states.float() for states in tokens]
    shared, results = query.shape[1] != key.shape[1], []
    with torch.autocast("cpu", enabled=False) if in_fp32 else nullcontext():
        for group in mask.groups:
            q, k, v = (states.index_select(0, group.flatten()).unflatten(0, group.shape).transpose(1, 2) for states in tokens)
            mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=shared)
            results.append(mixed.transpose(1, 2).flatten(0, 1))  # (n · L, H, K)
    gathered = torch.cat(results).index_select(0, mask.places)
    return gathered.unflatten(0, (query.shape[0], query.shape[2])).to(query.dtype), None


AttentionInterface.register(BY_DOCUMENT, attend_by_document)
AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)
