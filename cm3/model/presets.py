"""Named configurations: a tiny one for a laptop, CM3Leon's three (table 3) and Chameleon's two.

CM3Leon (arXiv 2309.02591): widths, depths and the initialization are the paper's; head counts, 4 D relu feed-forward, tied
embeddings and learned positions are those of the OPT family it is built on (metaseq), which the paper does not restate.
Chameleon (arXiv 2405.09818 section 2.3, and the released configuration): RMSNorm, SwiGLU, rotary, QK-norm per head.
"""

from __future__ import annotations

from dataclasses import fields
from types import MappingProxyType
from typing import Any

import torch

from cm3.core.errors import UsageError
from cm3.core.registry import nearest
from cm3.model.configuration import CM3Config
from cm3.model.modeling import CM3ForCausalLM

_CM3LEON = {
    "grid_embedding": False,
    "vocab_size": 65536,
    "max_position_embeddings": 4096,
    "position_embedding": "learned",
    "norm": "layernorm_no_affine",
    "activation": "relu",
    "tie_word_embeddings": True,
    "initializer_range": 0.006,
    "initializer_cutoff": 3.0,
    "residual_init_scale": 0.0,
    "position_initializer_range": 0.0002,
    "grid_shape": (32, 32),
}
_CHAMELEON = {
    "grid_embedding": False,
    "vocab_size": 65536,
    "max_position_embeddings": 4096,
    "position_embedding": "rotary",
    "norm": "rmsnorm",
    "qk_norm": "per_head",
    "activation": "swiglu",
    "tie_word_embeddings": False,
    "grid_shape": (32, 32),
    "image_start": 4,
    "image_stop": 8196,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}


def _size(width: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, **others}


PRESETS = MappingProxyType(
    {
        "tiny": _size(128, 4, 4, qk_norm="shared", initializer_range=0.02),
        "cm3leon-350m": _CM3LEON | _size(1024, 24, 16),
        "cm3leon-760m": _CM3LEON | _size(1536, 24, 16),
        "cm3leon-7b": _CM3LEON | _size(4096, 32, 32),
        "chameleon-7b": _CHAMELEON | _size(4096, 32, 32, intermediate_size=11008, dropout=0.1),
        "chameleon-34b": _CHAMELEON
        | _size(8192, 48, 64, num_key_value_heads=8, intermediate_size=22016, norm_placement="post_branch"),
    }
)


def preset(name: str, **overrides: Any) -> CM3Config:
    """The configuration called `name` with some fields replaced.

    Raises `UsageError` for an unknown name or field, with the nearest ones.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown model preset {name!r}; {nearest(name, list(PRESETS))}")
    known = [field.name for field in fields(CM3Config)]
    for key in overrides:
        if key not in known:
            raise UsageError(f"unknown model field {key!r}; {nearest(key, known)}")
    return CM3Config(**{**PRESETS[name], **overrides})


def create_model(config: CM3Config, seed: int, dtype: torch.dtype = torch.float32) -> CM3ForCausalLM:
    """A freshly initialized model; the same seed gives the same weights and the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CM3ForCausalLM(config).to(dtype)
