"""Token losses: cross-entropy over the whole vocabulary without ever holding the logits of a whole batch.

Hidden states (N, D) of the tokens that count, the output embedding (V, D), targets and weights go in; the weighted mean
loss and every token's own loss come out. Logits are made a chunk of rows at a time: the product in the dtype of autocast (in bf16
there, in fp32 without), what follows in fp32. Their gradient is formed at once, so the peak memory is one chunk's logits instead
of N · V (the idea of cut cross-entropy, arXiv 2411.09009); the fp32 gradient of the embedding is held until the backward pass.
The z-loss is Chameleon's (arXiv 2405.09818 section 2.3): z_weight · log² Z per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROW_STEP = 128  # rows are filled up to a multiple: in bf16 a CPU compiles and keeps a product for every new shape


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Rows whose logits are made at a time: 16 MiB of them in fp32 on a CPU, in reach of its caches, 512 MiB elsewhere, and
    `ROW_STEP` rows at least."""
    elements = 1 << 22 if device.type == "cpu" else 1 << 27
    return ROW_STEP * max(1, elements // vocab_size // ROW_STEP)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, z_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weighted mean cross-entropy of `hidden @ weight.T` against `targets`.

    hidden: (N, D) float; weight: (V, D) float; targets: (N,) int64 in [0, V); token_weights: (N,) float ≥ 0.
    Returns the loss Σ w (ce + z_weight · log² Z) / Σ w as a 0-d float32 tensor with gradients to hidden and weight, and the
    unweighted cross-entropies (N,) float32 in nats, detached. With Σ w = 0 the loss is 0. One backward pass is possible: a second
    raises `RuntimeError`.
    """
    count = len(targets)
    added = -count % ROW_STEP
    hidden, targets, token_weights = F.pad(hidden, (0, 0, 0, added)), F.pad(targets, (0, added)), F.pad(token_weights, (0, added))
    loss, token_losses = _LinearCrossEntropy.apply(hidden, weight, targets, token_weights, z_weight)
    return loss, token_losses[:count]


class _LinearCrossEntropy(torch.autograd.Function):
    """Forward forms the gradients chunk by chunk; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, z_weight: float
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            inputs = hidden.to(dtype), weight.to(dtype), targets, token_weights.float(), z_weight
            found = _chunked(*inputs, ctx.needs_input_grad[:2])
        loss, token_losses, *gradients = found
        ctx.gradients, ctx.dtypes = gradients, (hidden.dtype, weight.dtype)
        ctx.mark_non_differentiable(token_losses)
        return loss, token_losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cross_entropy handed its gradients over in the first backward pass; compute the loss again"
            )
        kept, ctx.gradients = ctx.gradients, None  # handed over and not copied: that of the vocabulary is large
        scaled = [None if one is None else one.mul_(gradients[0]).to(dtype) for one, dtype in zip(kept, ctx.dtypes, strict=True)]
        return scaled[0], scaled[1], None, None, None


def _chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, z_weight: float, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Loss, token losses (N,) and the gradients to hidden (N, D) and weight (V, D), those of them that `needs` says, in float32.

    What a chunk's logits turn into is written over them: this loop waits for memory.
    """
    count, vocab_size = hidden.shape[0], weight.shape[0]
    rows = chunk_rows(vocab_size, hidden.device)
    scale = token_weights / token_weights.sum().clamp_min(1e-12)  # (N,)
    loss, token_losses = scale.new_zeros(()), torch.empty_like(scale)
    hidden_grad = torch.empty_like(hidden, dtype=torch.float32) if needs[0] else None
    make = torch.empty_like if count else torch.zeros_like  # the first chunk writes, the others add
    weight_grad = make(weight, dtype=torch.float32) if needs[1] else None
    scores = hidden.new_empty(min(rows, count), vocab_size)  # of every chunk in turn
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        target, share = targets[part, None], scale[part, None]  # (n, 1)
        logits = torch.mm(hidden[part], weight.T, out=scores[: len(target)]).float()  # (n, V)
        highest = logits.amax(dim=1, keepdim=True)
        target_logits = logits.gather(1, target) - highest
        exponentials = logits.sub_(highest).exp_()
        sums = exponentials.sum(dim=1, keepdim=True)
        losses, log_z = sums.log() - target_logits, sums.log() + highest
        token_losses[part] = losses[:, 0]
        loss += (share * (losses + z_weight * log_z.square())).sum()
        if not any(needs):
            continue
        gradient = exponentials.mul_(share * (1 + 2 * z_weight * log_z) / sums)
        gradient = gradient.scatter_add_(1, target, -share).to(hidden.dtype)
        if hidden_grad is not None:
            hidden_grad[part] = gradient @ weight
        if weight_grad is None:
            continue
        if weight_grad.dtype == hidden.dtype:
            weight_grad.addmm_(gradient.T, hidden[part], beta=float(start > 0))
        elif start == 0:
            weight_grad.copy_(gradient.T @ hidden[part])
        else:  # sums over chunks stay in float32
            weight_grad += gradient.T @ hidden[part]
    return loss, token_losses, hidden_grad, weight_grad


def balanced_weights(targets_are_image: Tensor, token_weights: Tensor, image_weight: float) -> Tensor:
    """Token weights (N,) with those of image targets multiplied by `image_weight`; `targets_are_image`: (N,) bool."""
    if image_weight == 1.0:
        return token_weights
    return torch.where(targets_are_image, token_weights * image_weight, token_weights)
