"""LlamaGen's own transformer and generate loop with the weights of one of our models, from a checkout of its repository.

`CM3_BENCH_LLAMAGEN` names the folder of github.com/FoundationVision/LlamaGen. Its class-conditional model begins with the
vector of a class, here that of our prompt's only token, and guides by one more class, here our `<mask:0>`; its ids are the codes
alone. Its rotary table is set to positions in one dimension, as ours are; all else runs as it is written there.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cm3.decode import Prompt
from cm3.model import CM3ForCausalLM
from cm3.tokens import Span, Vocab


def llamagen_checkout() -> Path | None:
    """The folder that `CM3_BENCH_LLAMAGEN` names; None without one."""
    folder = os.environ.get("CM3_BENCH_LLAMAGEN")
    return Path(folder) if folder else None


def class_prompt(vocab: Vocab) -> Prompt:
    """One token of text as the whole prompt; without its text it is `<mask:0>`."""
    return Prompt(vocab, np.array([vocab.text_start]), np.zeros(1, np.int64), (Span("text", 0, 1),), context_stop=0)


def llamagen_loop(checkout: Path, model: CM3ForCausalLM, vocab: Vocab, scale: float) -> Callable[[], list[int]]:
    """A function that draws the codes of one picture of `class_prompt`, greedy, as token ids of ours."""
    sys.path.insert(0, str(checkout))
    network, loop = (importlib.import_module(f"autoregressive.models.{name}") for name in ("gpt", "generate"))
    config = model.config
    network.precompute_freqs_cis_2d = lambda grid, width, base, begin: _rotary(begin + grid * grid, width, base)
    side = int(np.ceil(vocab.num_image_tokens**0.5))  # its pictures are square; ours may end before
    peer = network.Transformer(
        network.ModelArgs(
            dim=config.hidden_size, n_layer=config.num_hidden_layers, n_head=config.num_attention_heads, multiple_of=128,
            vocab_size=vocab.codebook_size, block_size=side * side, num_classes=1, rope_base=config.rotary_base,
        )
    ).eval()  # fmt: skip
    peer.load_state_dict(_weights(model, vocab), strict=True)

    def run() -> list[int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its context for attention has a new name
            codes = loop.generate(
                peer, torch.tensor([0]), vocab.num_image_tokens, cfg_scale=scale, temperature=1.0, top_k=0, sample_logits=False
            )
        return (codes[0].long() + vocab.image_start).tolist()

    return run


def _weights(model: CM3ForCausalLM, vocab: Vocab) -> dict[str, Tensor]:
    """Our weights by LlamaGen's names."""
    ours, codes, heads = model.state_dict(), slice(vocab.image_start, vocab.image_stop), model.config.num_attention_heads
    words = ours["model.embed_tokens.weight"]
    theirs = {
        "cls_embedding.embedding_table.weight": words[[vocab.text_start, vocab.mask_id(0)]],
        "tok_embeddings.weight": words[codes],
        "norm.weight": ours["model.norm.weight"],
        "output.weight": ours["lm_head.weight"][codes],
    }
    for layer in range(model.config.num_hidden_layers):
        of_layer = {name: ours[f"model.layers.{layer}.{name}.weight"] for name in _NAMES}
        query, key = (_interleaved(of_layer[f"self_attn.{name}_proj"], heads) for name in "qk")
        theirs[f"layers.{layer}.attention.wqkv.weight"] = torch.cat([query, key, of_layer["self_attn.v_proj"]])
        theirs |= {f"layers.{layer}.{name}.weight": of_layer[own] for own, name in _NAMES.items() if name}
    return theirs


_NAMES = {
    "self_attn.q_proj": "", "self_attn.k_proj": "", "self_attn.v_proj": "", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection from our order, halves of a head, to neighbors that are turned together."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _rotary(length: int, width: int, base: float) -> Tensor:
    """Cosines and sines (T, K / 2, 2) of positions in one dimension."""
    angle = torch.arange(length)[:, None] * base ** -(torch.arange(0, width, 2) / width)  # (T, K / 2)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)
