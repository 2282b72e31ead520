"""Which attention back end trains: FlexAttention on a GPU, where it skips what document masks hide; SDPA elsewhere.

`sdpa_fp32` is SDPA outside autocast. In bf16 the CPU kernel's backward pass is up to 2.5 times slower than in fp32 when
heads are narrow (width 32, rows of 256: 38 against 17 ms on two cores with AMX), more than its forward pass gains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cm3.model import CM3ForCausalLM
from cm3.train.config import TrainConfig
from cm3.train.precision import autocast_dtype

Attention = Literal["auto", "sdpa", "sdpa_fp32", "flex_attention", "eager"]
NARROW_HEAD = 64  # heads below this width train with sdpa_fp32 on a CPU in bf16


def use_attention(model: CM3ForCausalLM, asked: Attention, config: TrainConfig) -> None:
    """Set the back end of `model`; "auto" follows the device, the precision and the width of the heads."""
    if asked == "auto":
        asked = _fitting(model.config.head_dim, config)
    model.set_attn_implementation(asked)


def _fitting(head_dim: int, config: TrainConfig) -> Attention:
    if torch.cuda.is_available() and config.device != "cpu":
        return "flex_attention"
    in_bf16 = autocast_dtype(config.precision, torch.device("cpu")) is not None
    return "sdpa_fp32" if in_bf16 and head_dim < NARROW_HEAD else "sdpa"


@contextmanager
def for_decoding(model: CM3ForCausalLM) -> Iterator[CM3ForCausalLM]:
    """The model with SDPA, which decoding with a cache needs; afterwards as it was."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield model
    finally:
        model.set_attn_implementation(before)


def _sdpa_fp32(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """query (B, H, T, K), key and value (B, G, S, K) in any float dtype → (B, T, H, K) in that of the query."""
    with torch.autocast(query.device.type, enabled=False):
        mask = None if attention_mask is None else attention_mask.float()
        mixed, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **kwargs)
    return mixed.to(query.dtype), None


AttentionInterface.register("sdpa_fp32", _sdpa_fp32)
AttentionMaskInterface.register("sdpa_fp32", sdpa_mask)
