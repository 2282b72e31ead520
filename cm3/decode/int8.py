"""Weights as 8-bit integers, one scale per output: a quarter of the memory of float32, half of that of bfloat16. Lossy.

Answers differ from those of the full weights, and seeds draw other pictures; nothing else in `cm3.decode` changes. Only the
matrices of the layers are rounded: embeddings, norms and the head, where rounding costs most, stay as they are.
On a CPU the inputs and outputs of these matrices are bfloat16, whatever the model's dtype: the kernel that reads the integers
is several times slower in float32 than the full matrix, and gives each row the same result in any company.
Symmetric rounding per output row, as in LLM.int8's vector-wise baseline (arXiv:2208.07339) without its outlier path.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3.core.errors import UsageError
from cm3.model import CM3ForCausalLM


class Int8Linear(nn.Module):
    """A linear map whose weight (out, in) is int8, with scales (out,) in the dtype of its inputs."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny).float() / 127  # (out,)
        self.register_buffer("weight", (weight.float() / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:  # (..., in) → (..., out)
        flat = x.reshape(-1, x.shape[-1])
        if x.device.type == "cpu":  # the kernel that reads the integers themselves is fast in bfloat16 alone
            mixed = torch._weight_int8pack_mm(flat.bfloat16(), self.weight, self.scale.bfloat16()).to(x.dtype)
        else:
            mixed = F.linear(flat, self.weight.to(x.dtype)) * self.scale
        mixed = mixed if self.bias is None else mixed + self.bias
        return mixed.view(*x.shape[:-1], -1)


@torch.no_grad()
def quantize_weights(model: CM3ForCausalLM) -> CM3ForCausalLM:
    """Replace every matrix of the layers by its int8 version, in place; returns the model, which can no longer be trained."""
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, module in list(block.named_children()):  # type: ignore[union-attr]
                if isinstance(module, nn.Linear):
                    setattr(block, name, Int8Linear(module))
    return model


def require_full_weights(model: CM3ForCausalLM) -> None:
    """Raise `UsageError` for a model whose weights were rounded: it is no longer what a model folder holds."""
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise UsageError("a model opened with int8=True cannot be saved: its weights were rounded; open it without int8")
