"""`CM3Config`: every choice that makes one decoder-only transformer of this family, as explicit fields.

The defaults are the small modern variant (rotary positions, LayerNorm without affine, SwiGLU). `presets.py` names the
published ones: CM3Leon (Yu et al. 2023, arXiv 2309.02591 section 3 and table 3), Chameleon (arXiv 2405.09818 section 2.3).
"""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from cm3.core.registry import nearest
from cm3.model.attention_patterns import PATTERNS

# sizes and the least they may be; 0 stands for a size that follows from the others
_LEAST = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"), 1),
    **dict.fromkeys(("intermediate_size", "num_key_value_heads", "head_dim"), 0),
}


@strict
class CM3Config(PreTrainedConfig):
    """Shape, variant and initialization of a `CM3ForCausalLM`.

    Sizes
        vocab_size V, hidden_size D, intermediate_size (0: 4 D, or 8/3 D rounded up to 32 with a gate), num_hidden_layers,
        num_attention_heads H, num_key_value_heads (0: H), head_dim K (0: D / H),
        max_position_embeddings: the longest row of tokens.
    Variant
        position_embedding: "rotary" (half-split, as in Llama), "learned" (absolute) or "none".
        grid_embedding: add a learned row and a learned column vector to every image token; needs `grid_shape` (h, w).
        norm: "rmsnorm" (learned gain) or "layernorm_no_affine"; norm_eps.
        norm_placement: "pre", x + f(norm(x)), or "post_branch", x + norm(f(x)) (Chameleon 34B).
        qk_norm: "none", "shared" (LayerNorm over K, one gain for all heads) or "per_head" (a gain and a bias per head);
        qk_norm_eps.
        activation: "swiglu", "relu", "gelu" or "silu" (the last three without a gate).
        attention_pattern: which positions may see which, a name in `attention_patterns.PATTERNS`.
        dropout: on the embeddings and after each residual branch; attention_dropout: on the attention weights;
        attention_bias: on q, k, v, o.
    Initialization
        initializer_range: standard deviation of every matrix; initializer_cutoff: truncate at so many standard
        deviations (None: plain normal); residual_init_scale: factor on the matrices that write into the residual
        stream (0: they start at zero); position_initializer_range: standard deviation of learned positions.
    Image ids
        image_start, image_stop: the contiguous range of image token ids, from which `generate()` derives grid positions.
    Record of training
        texts_were_masked: whether `<mask:0>` stood in place of whole texts, which guidance relies on (None: not recorded).
    """

    model_type = "cm3"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (the name and type are transformers' own)

    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 0
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 1024

    position_embedding: Literal["rotary", "learned", "none"] = "rotary"
    rotary_base: float = 10000.0
    grid_embedding: bool = False
    grid_shape: tuple[int, int] | list[int] | None = None
    norm: Literal["rmsnorm", "layernorm_no_affine"] = "layernorm_no_affine"
    norm_eps: float = 1e-5
    norm_placement: Literal["pre", "post_branch"] = "pre"
    qk_norm: Literal["none", "shared", "per_head"] = "none"
    qk_norm_eps: float = 1e-5
    activation: Literal["swiglu", "relu", "gelu", "silu"] = "swiglu"
    attention_pattern: str = "causal"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    attention_bias: bool = False
    tie_word_embeddings: bool = True

    initializer_range: float = 0.02
    initializer_cutoff: float | None = None
    residual_init_scale: float = 1.0
    position_initializer_range: float = 0.02

    image_start: int | None = None
    image_stop: int | None = None
    texts_were_masked: bool | None = None

    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2

    def __post_init__(self, **kwargs: object) -> None:
        for name, least in _LEAST.items():
            if (size := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}, got {size}")
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        if not self.intermediate_size:
            gated = 32 * -(-8 * self.hidden_size // (3 * 32))
            self.intermediate_size = gated if self.activation == "swiglu" else 4 * self.hidden_size
        if self.grid_shape is not None and len(self.grid_shape) == 2:
            self.grid_shape = (self.grid_shape[0], self.grid_shape[1])  # JSON gives a list
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Refuse combinations that cannot be built (called by transformers after the types are checked)."""
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads={heads} is not a multiple of num_key_value_heads={kv_heads}")
        if not self.head_dim:
            raise ValueError(f"hidden_size={self.hidden_size} is smaller than num_attention_heads={heads}")
        if self.position_embedding == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions rotate pairs: head_dim must be even, got {self.head_dim}")
        if (self.grid_shape is not None and (len(self.grid_shape) != 2 or min(self.grid_shape) < 1)) or (
            self.grid_embedding and self.grid_shape is None
        ):
            raise ValueError(f"grid_shape must be (h, w), both at least 1, and grid_embedding needs one; got {self.grid_shape}")
        if self.attention_pattern not in PATTERNS:
            known = nearest(self.attention_pattern, list(PATTERNS))
            raise ValueError(f"unknown attention_pattern {self.attention_pattern!r}; {known}")
        if not 0.0 <= self.dropout < 1.0 or not 0.0 <= self.attention_dropout < 1.0:
            raise ValueError(f"dropout rates lie in [0, 1), got {self.dropout} and {self.attention_dropout}")

    @property
    def num_image_tokens(self) -> int | None:
        """h · w of one picture, or None when the model knows no grid."""
        return None if self.grid_shape is None else self.grid_shape[0] * self.grid_shape[1]
