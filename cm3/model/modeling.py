"""`CM3ForCausalLM`: one decoder-only transformer over text and image tokens, as a `transformers` model.

Token ids (B, T) and grid positions (B, T) go in; hidden states (B, T, D) and logits (B, T, V) come out. All variants of
`CM3Config` live in this file. The module is plain single-device code: attention back ends, dtype, LoRA, sharding and
compilation are applied from outside. `model.model(...)` gives hidden states and `model.project(...)` turns any rows of them
into logits, so a loss or a sampler never has to build the whole (B, T, V).

Shape letters: B batch, T token position, D width, H query heads, G key/value heads, K head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cm3.model.attention_patterns import PATTERNS, additive, document_mask_function
from cm3.model.configuration import CM3Config
from cm3.model.document_attention import BY_DOCUMENT, pack_documents
from cm3.model.positions import grid_positions_of, grid_table, rotary_factors, rotate
from cm3.model.recomputed import rms_norm, swiglu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": F.silu, "silu": F.silu, "relu": F.relu, "gelu": F.gelu}


class CM3Norm(nn.Module):
    """RMSNorm with a learned gain, or LayerNorm without parameters, over the last axis."""

    def __init__(self, config: CM3Config) -> None:
        super().__init__()
        self.shape, self.eps = (config.hidden_size,), config.norm_eps
        self.weight = nn.Parameter(torch.ones(self.shape)) if config.norm == "rmsnorm" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return F.layer_norm(x, self.shape, None, None, self.eps)
        return rms_norm(x, self.weight, self.eps)


class CM3HeadNorm(nn.Module):
    """LayerNorm over the width of each head: one gain for all heads, or a gain and a bias per head (Chameleon)."""

    def __init__(self, config: CM3Config, heads: int) -> None:
        super().__init__()
        per_head = config.qk_norm == "per_head"
        self.head_shape, self.eps = (config.head_dim,), config.qk_norm_eps
        shape = (heads, config.head_dim) if per_head else self.head_shape
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape)) if per_head else None

    def forward(self, x: Tensor) -> Tensor:  # (B, T, H, K)
        if self.bias is not None:
            return F.layer_norm(x, self.head_shape, None, None, self.eps) * self.weight + self.bias
        return F.layer_norm(x, self.head_shape, self.weight, None, self.eps)


class ResidualOutput(nn.Linear):
    """The last matrix of a residual branch; a type of its own because its initialization is scaled."""


class LearnedPositions(nn.Embedding):
    """Absolute position vectors; a type of its own because its initialization differs from that of the tokens."""


class CM3Attention(nn.Module):
    """Multi-head (or grouped-query) self-attention through transformers' attention interface."""

    def __init__(self, config: CM3Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim, heads, kv_heads = config.head_dim, config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups = heads // kv_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=bias)
        self.o_proj = ResidualOutput(heads * self.head_dim, width, bias=bias)
        self.q_norm = CM3HeadNorm(config, heads) if config.qk_norm != "none" else None
        self.k_norm = CM3HeadNorm(config, kv_heads) if config.qk_norm != "none" else None

    def forward(
        self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None, past_key_values: Cache | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D) → (B, T, D) and the attention weights (None unless the back end gives them)."""
        batch, length, _ = x.shape
        heads_shape = (batch, length, -1, self.head_dim)
        query = self.q_proj(x).view(heads_shape)  # (B, T, H, K)
        key = self.k_proj(x).view(heads_shape)  # (B, T, G, K)
        value = self.v_proj(x).view(heads_shape).transpose(1, 2)  # (B, G, T, K)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        query, key = query.transpose(1, 2), key.transpose(1, 2)  # (B, H, T, K), (B, G, T, K)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        mixed, weights = attend(self, query, key, value, mask, dropout=dropout, scaling=self.scaling, **kwargs)  # (B, T, H, K)
        return self.o_proj(mixed.reshape(batch, length, -1)), weights


def eager_attention(
    module: CM3Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out: query (B, H, T, K), key and value (B, G, S, K), additive mask → (B, T, H, K), (B, H, T, S)."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # (B, H, T, S)
    if mask is not None:
        scores = scores + mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2), weights


class CM3MLP(nn.Module):
    """Two-matrix feed-forward, or three matrices with a gate (SwiGLU)."""

    def __init__(self, config: CM3Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False) if config.activation == "swiglu" else None
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = ResidualOutput(inner, width, bias=False)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        if self.gate_proj is None:
            return self.down_proj(self.activation(self.up_proj(x)))
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class CM3DecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each a residual branch with its norm before or behind it."""

    def __init__(self, config: CM3Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = CM3Attention(config, layer_idx)
        self.mlp = CM3MLP(config)
        self.input_layernorm = CM3Norm(config)
        self.post_attention_layernorm = CM3Norm(config)
        self.norm_behind = config.norm_placement == "post_branch"
        self.dropout = config.dropout

    def forward(self, x: Tensor, **attention: Any) -> tuple[Tensor, Tensor | None]:  # (B, T, D)
        if self.norm_behind:
            mixed, weights = self.self_attn(x, **attention)
            x = x + self._drop(self.input_layernorm(mixed))
            return x + self._drop(self.post_attention_layernorm(self.mlp(x))), weights
        mixed, weights = self.self_attn(self.input_layernorm(x), **attention)
        x = x + self._drop(mixed)
        return x + self._drop(self.mlp(self.post_attention_layernorm(x))), weights

    def _drop(self, branch: Tensor) -> Tensor:
        return F.dropout(branch, self.dropout, True) if self.training and self.dropout else branch


class CM3PreTrainedModel(PreTrainedModel):
    """What transformers needs to know about the family, and how weights start."""

    config: CM3Config
    config_class = CM3Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["CM3DecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal (optionally truncated) matrices, gains of one, biases of zero."""
        config = self.config
        if isinstance(module, LearnedPositions):
            self._draw(module.weight, config.position_initializer_range)
        elif isinstance(module, ResidualOutput):
            self._draw(module.weight, config.initializer_range * config.residual_init_scale)
        elif isinstance(module, nn.Linear | nn.Embedding):
            self._draw(module.weight, config.initializer_range)
        elif isinstance(module, CM3Norm | CM3HeadNorm) and module.weight is not None:
            init.ones_(module.weight)
        if isinstance(module, nn.Linear | CM3HeadNorm) and module.bias is not None:
            init.zeros_(module.bias)

    def _draw(self, weight: Tensor, std: float) -> None:
        if std == 0.0:
            init.zeros_(weight)
        elif self.config.initializer_cutoff is None:
            init.normal_(weight, std=std)
        else:
            bound = self.config.initializer_cutoff * std
            init.trunc_normal_(weight, std=std, a=-bound, b=bound)


class CM3Model(CM3PreTrainedModel):
    """The transformer without its head: token ids → hidden states."""

    def __init__(self, config: CM3Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        learned = config.position_embedding == "learned"
        self.embed_positions = LearnedPositions(config.max_position_embeddings, width) if learned else None
        grid = config.grid_shape if config.grid_embedding else None
        self.embed_rows = nn.Embedding(grid[0], width) if grid else None
        self.embed_columns = nn.Embedding(grid[1], width) if grid else None
        self.layers = nn.ModuleList(CM3DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = CM3Norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        grid_positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of a batch of rows.

        input_ids: (B, T) int64, or inputs_embeds (B, T, D) instead. attention_mask: (B, S) with 0 for padding, or a ready
        mask of the back end. position_ids: (B, T), counted from the cache when missing. grid_positions: (B, T), 0 for a
        token that is no image code and 1 + row · w + column for one that is; derived from the ids when missing.
        document_ids: (B, T), packed documents do not see each other. Returns last_hidden_state (B, T, D), the cache when
        `use_cache`, and all hidden states or attention weights when asked for.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        x = self._embed(input_ids, inputs_embeds, grid_positions, past)  # (B, T, D)
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]  # (1, T)
        if self.embed_positions is not None:
            self._check_length(position_ids)
            x = x + self.embed_positions(position_ids)
        if self.training and self.config.dropout:
            x = F.dropout(x, self.config.dropout, True)
        rotary = rotary_factors(position_ids, self.config, x.dtype) if self.config.position_embedding == "rotary" else None
        mask = self._mask(x, attention_mask, document_ids, past_key_values)
        states, attentions = [x], []
        for layer in self.layers:
            x, weights = layer(x, mask=mask, rotary=rotary, past_key_values=past_key_values, **kwargs)
            if output_hidden_states:
                states.append(x)
            if output_attentions:
                attentions.append(weights)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values if use_cache or past_key_values is not None else None,
            hidden_states=(*states[:-1], x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _embed(self, input_ids: Tensor | None, embeds: Tensor | None, grid_positions: Tensor | None, past: int) -> Tensor:
        x = self.embed_tokens(input_ids) if embeds is None else embeds
        if self.embed_rows is None or self.embed_columns is None:
            return x
        if grid_positions is None:
            if input_ids is None or past:
                raise ValueError("with inputs_embeds or a filled cache, grid_positions (B, T) must be given")
            grid_positions = grid_positions_of(input_ids, self.config)
        return x + F.embedding(grid_positions, grid_table(self.embed_rows.weight, self.embed_columns.weight))

    def _check_length(self, position_ids: Tensor) -> None:
        limit = self.config.max_position_embeddings
        if position_ids.device.type == "cpu" and not torch.compiler.is_compiling() and int(position_ids.max()) >= limit:
            raise ValueError(f"a row of {int(position_ids.max()) + 1} tokens is longer than max_position_embeddings={limit}")

    def _mask(self, x: Tensor, mask: Tensor | None, document_ids: Tensor | None, past: Cache | None) -> Any:
        """The cheapest mask that is right: none at all where the back end's own causal path is enough."""
        backend, length = self.config._attn_implementation, x.shape[1]
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() == 4):
            return mask
        if document_ids is not None:
            return self._document_mask(x, mask, document_ids, past)
        growing = past is None or (not past.is_compileable and (length == 1 or past.get_seq_length() == 0))
        if mask is None and growing and backend == "sdpa" and self.config.attention_pattern == "causal":
            return None
        return create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=mask, past_key_values=past)

    def _document_mask(self, x: Tensor, mask: Tensor | None, document_ids: Tensor, past: Cache | None) -> Any:
        backend = self.config._attn_implementation
        if mask is not None or past is not None:
            raise ValueError("document_ids are for packed training rows: give no attention_mask and no cache beside them")
        if "flash" in backend:
            raise ValueError(f"document_ids need the sdpa, eager or flex_attention back end; this model runs {backend!r}")
        if backend == BY_DOCUMENT and self.config.attention_pattern == "causal":
            return pack_documents(document_ids)
        if backend != "flex_attention":
            visible = PATTERNS[self.config.attention_pattern](x.shape[1], document_ids, x.device)
            return additive(visible, x.dtype)
        same = document_mask_function(document_ids)
        return create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=None, past_key_values=None, and_mask_function=same
        )


class CM3ForCausalLM(CM3PreTrainedModel, GenerationMixin):
    """The transformer with its language-model head over text and image tokens alike."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: CM3Config) -> None:
        super().__init__(config)
        self.model = CM3Model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def project(self, hidden: Tensor, id_range: tuple[int, int] | None = None) -> Tensor:
        """Hidden states (..., D) → logits (..., V), or (..., stop - start) for the ids of `id_range` alone."""
        if id_range is None:
            return self.lm_head(hidden)
        if not isinstance(self.lm_head, nn.Linear):  # an adapter or a quantized head computes more than its weight says
            return self.lm_head(hidden)[..., id_range[0] : id_range[1]]
        return F.linear(hidden, self.lm_head.weight[id_range[0] : id_range[1]])

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), or of the last `logits_to_keep` positions; with `labels` (B, T) also the mean loss.

        Labels are the input ids with -100 where no loss is wanted; image tokens are ordinary labels. That loss is the one
        of transformers, over all logits in fp32 at once; `cm3.pretrain.losses` has that of our trainings, a chunk at a time.
        All other arguments are those of `CM3Model.forward`.
        """
        num_items = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.vocab_size, num_items_in_batch=num_items)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Adds the grid positions of the tokens that are fed in this step, read off the whole row of ids."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        fed = inputs.get("input_ids")
        if self.config.grid_embedding and fed is not None:
            inputs["grid_positions"] = grid_positions_of(input_ids, self.config)[:, -fed.shape[1] :]
        return inputs
