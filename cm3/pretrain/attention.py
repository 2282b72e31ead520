"""Which attention back end trains: FlexAttention on a GPU, where it skips what document masks hide; elsewhere SDPA, a document
at a time (`cm3.model.document_attention`), or with a mask over whole rows where a compiler wants one shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from cm3.model import CM3ForCausalLM
from cm3.train.config import TrainConfig

Attention = Literal["auto", "sdpa", "sdpa_by_document", "flex_attention", "eager"]


def use_attention(model: CM3ForCausalLM, asked: Attention, config: TrainConfig) -> None:
    """Set the back end of `model`."""
    model.set_attn_implementation(back_end(asked, config))


def back_end(asked: Attention, config: TrainConfig) -> Attention:
    """The back end that `asked` means; "auto" follows the device, and whether the model is compiled."""
    if asked != "auto":
        return asked
    on_gpu = torch.cuda.is_available() and config.device != "cpu"
    return "flex_attention" if on_gpu else "sdpa" if config.compile else "sdpa_by_document"


@contextmanager
def for_decoding(model: CM3ForCausalLM) -> Iterator[CM3ForCausalLM]:
    """The model with SDPA, which decoding with a cache needs; afterwards as it was."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield model
    finally:
        model.set_attn_implementation(before)
