"""Token losses: cross-entropy over the whole vocabulary without ever holding the logits of a whole batch.

Hidden states (N, D) of the tokens that count, the output embedding (V, D), targets and weights go in; the weighted mean
loss and every token's own loss come out. Logits are made a chunk of rows at a time, in fp32, and their gradient is formed
at once, so the peak memory is one chunk's logits instead of N · V (the idea of cut cross-entropy, arXiv 2411.09009).
The z-loss is Chameleon's (arXiv 2405.09818 section 2.3): z_weight · log² Z per token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 23  # logits of one chunk: 8M fp32 numbers, 32 MiB
ROW_STEP = 128  # rows are filled up to a multiple: in bf16 a CPU compiles and keeps a product for every new shape


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, token_weights: Tensor, z_weight: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weighted mean cross-entropy of `hidden @ weight.T` against `targets`.

    hidden: (N, D) float; weight: (V, D) float; targets: (N,) int64 in [0, V); token_weights: (N,) float ≥ 0.
    Returns the loss Σ w (ce + z_weight · log² Z) / Σ w as a 0-d float32 tensor with gradients to hidden and weight, and the
    unweighted cross-entropies (N,) float32 in nats, detached. With Σ w = 0 the loss is 0.
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
        count, vocab_size = hidden.shape[0], weight.shape[0]
        rows = max(1, CHUNK_ELEMENTS // vocab_size)
        scale = token_weights.float() / token_weights.float().sum().clamp_min(1e-12)  # (N,)
        token_losses = torch.empty(count, dtype=torch.float32, device=hidden.device)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            logits = F.linear(hidden[part], weight).float()  # (n, V)
            log_z = torch.logsumexp(logits, dim=-1)  # (n,)
            target = targets[part, None]
            token_losses[part] = log_z - logits.gather(1, target)[:, 0]
            loss += (scale[part] * (token_losses[part] + z_weight * log_z.square())).sum()
            if not (needs_hidden or needs_weight):
                continue
            gradient = logits.sub_(log_z[:, None]).exp_()  # (n, V) probabilities
            gradient *= (scale[part] * (1 + 2 * z_weight * log_z))[:, None]
            gradient.scatter_add_(1, target, -scale[part, None])
            gradient = gradient.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[part] = gradient @ weight
            if weight_grad is not None:
                weight_grad += gradient.T @ hidden[part]
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(token_losses)
        return loss, token_losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        scale = gradients[0]
        return (
            None if hidden_grad is None else hidden_grad * scale.to(hidden_grad.dtype),
            None if weight_grad is None else (weight_grad * scale).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


def balanced_weights(targets_are_image: Tensor, token_weights: Tensor, image_weight: float) -> Tensor:
    """Token weights (N,) with those of image targets multiplied by `image_weight`; `targets_are_image`: (N,) bool."""
    if image_weight == 1.0:
        return token_weights
    return torch.where(targets_are_image, token_weights * image_weight, token_weights)
