"""Chameleon's original parameters: their names and ours, and how model-parallel ranks cut them.

A rank holds rows or columns of every matrix, its own QK-norm for its heads, and all of the other norms. The rows of `ROTATED`
matrices and the head norms pair rotary numbers side by side (`rotary_layout`).
"""

from __future__ import annotations

from cm3.model import CM3Config

WHOLE, ROWS, COLUMNS = None, 0, 1
# their name in a layer → ours, and the axis along which the ranks hold parts
LAYER = {
    "attention.wq.weight": ("self_attn.q_proj.weight", ROWS),
    "attention.wk.weight": ("self_attn.k_proj.weight", ROWS),
    "attention.wv.weight": ("self_attn.v_proj.weight", ROWS),
    "attention.wo.weight": ("self_attn.o_proj.weight", COLUMNS),
    "feed_forward.w1.weight": ("mlp.gate_proj.weight", ROWS),
    "feed_forward.w2.weight": ("mlp.down_proj.weight", COLUMNS),
    "feed_forward.w3.weight": ("mlp.up_proj.weight", ROWS),
    "attention_norm.weight": ("input_layernorm.weight", WHOLE),
    "ffn_norm.weight": ("post_attention_layernorm.weight", WHOLE),
}
TOP = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", COLUMNS),
    "norm.weight": ("model.norm.weight", WHOLE),
    "output.weight": ("lm_head.weight", ROWS),
}
HEAD_NORM = {
    f"attention.{side}_normalization.{kind}": (f"self_attn.{side}_norm.{kind}", side)
    for side in "qk"
    for kind in ("weight", "bias")
}
ROTATED = {"attention.wq.weight": "q", "attention.wk.weight": "k"}


def head_count(config: CM3Config, side: str) -> int:
    """Heads of the queries ("q") or of the keys and values ("k")."""
    return config.num_attention_heads if side == "q" else config.num_key_value_heads
