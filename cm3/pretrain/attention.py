"""Which attention back end trains: FlexAttention on a GPU, where it skips what document masks hide; SDPA elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from cm3.model import CM3ForCausalLM

Attention = Literal["auto", "sdpa", "flex_attention", "eager"]


def use_attention(model: CM3ForCausalLM, asked: Attention, device: str = "auto") -> None:
    """Set the back end of `model`; "auto" is FlexAttention when the run is on a GPU (`device` as in `TrainConfig`)."""
    if asked == "auto":
        asked = "flex_attention" if torch.cuda.is_available() and device != "cpu" else "sdpa"
    model.set_attn_implementation(asked)


@contextmanager
def for_decoding(model: CM3ForCausalLM) -> Iterator[CM3ForCausalLM]:
    """The model with SDPA, which decoding with a cache needs; afterwards as it was."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield model
    finally:
        model.set_attn_implementation(before)
