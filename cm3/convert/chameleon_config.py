"""Which of our configurations a Chameleon is, and which of ours its layouts can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cm3.core.errors import UsageError
from cm3.model import CM3Config
from cm3.tokens import Vocab


def chameleon_fields(vocab: Vocab, reordered: bool) -> dict[str, Any]:
    """The fields of `CM3Config` that every Chameleon shares. reordered: norms behind the branches, as in the 34B."""
    return {
        "vocab_size": vocab.size,
        "position_embedding": "rotary",
        "norm": "rmsnorm",
        "norm_placement": "post_branch" if reordered else "pre",
        "activation": "swiglu",
        "grid_shape": vocab.grid_shape,
        "image_start": vocab.image_start,
        "image_stop": vocab.image_stop,
        "pad_token_id": vocab.pad_id,
        "bos_token_id": vocab.bos_id,
        "eos_token_id": vocab.eos_id,
    }


def require_chameleon(config: CM3Config, qk_norms: Sequence[str]) -> None:
    """Raise `UsageError` naming the first field in which `config` is no Chameleon; `qk_norms`: what the layout can hold."""
    allowed: dict[str, Sequence[object]] = {
        "position_embedding": ("rotary",),
        "norm": ("rmsnorm",),
        "activation": ("swiglu",),
        "grid_embedding": (False,),
        "qk_norm": qk_norms,
        "qk_norm_eps": (1e-5,),
        "attention_pattern": ("causal",),
        "head_dim": (config.hidden_size // config.num_attention_heads,),
    }
    for name, values in allowed.items():
        if (given := getattr(config, name)) not in values:
            expected = " or ".join(map(repr, values))
            raise UsageError(f"Chameleon's layouts hold {name}={expected} alone, this model has {given!r}; keep it in ours")
