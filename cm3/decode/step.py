"""The transformer once more, written for what decoding does all the time: one or a few new tokens per row.

It reads the weights of a `CM3Model` and gives the same hidden states (tested for every variant), with far fewer
dispatches: tokens lie flat (N · W, D), queries, keys and values are one product, both head norms one call, rotary factors
come from a table, residual sums are part of the last product. Small models, whose steps are bound by dispatches, get
joined copies of their weights; large ones are read where they lie. Projections that are more than a matrix (adapters,
int8) are called as they are. Shape letters as in `cm3.model.modeling`; N rows, W new tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cm3.decode.cache import KeyValues
from cm3.model.modeling import CM3DecoderLayer, CM3HeadNorm, CM3Model, CM3Norm, ResidualOutput
from cm3.model.positions import grid_table, rotary_factors, rotate

_JOIN_BYTES = 64 << 20  # models up to this size get joined copies


class Stepper:
    """A model at one moment, ready to step. Build it anew after the weights have changed.

    positions: one past the last position that will be asked for.
    """

    @torch.inference_mode()
    def __init__(self, model: CM3Model, positions: int) -> None:
        self._model, config = model, model.config
        self._scaling = config.head_dim**-0.5
        small = sum(parameter.nbytes for parameter in model.layers.parameters()) <= _JOIN_BYTES
        self._layers = [_Layer(layer, small) for layer in model.layers]  # type: ignore[arg-type]
        self._rotary: Tensor | None = None
        if config.position_embedding == "rotary":
            every = torch.arange(positions, device=model.device)
            factors = rotary_factors(every[None], config, model.dtype)
            self._rotary = torch.stack([factor[0] for factor in factors], dim=1)  # (P, 2, 1, K)
        self._grid: Tensor | None = None
        if model.embed_rows is not None and model.embed_columns is not None:
            self._grid = grid_table(model.embed_rows.weight, model.embed_columns.weight)  # (1 + h · w, D)

    def __call__(self, token_ids: Tensor, positions: Tensor, grid_positions: Tensor, cache: KeyValues) -> Tensor:
        """Hidden states (N, W, D) of new tokens: token_ids, positions and grid_positions (N, W), rows in the cache's order.

        The cache has been told where they go (`KeyValues.place`).
        """
        model, shape = self._model, token_ids.shape
        x = model.embed_tokens(token_ids.flatten())  # (M, D), M = N · W
        if self._grid is not None:
            x = x + self._grid.index_select(0, grid_positions.flatten())
        if model.embed_positions is not None:
            x = x + model.embed_positions(positions.flatten())
        rotary = None if self._rotary is None else self._rotary.index_select(0, positions.flatten()).unbind(1)
        for index, layer in enumerate(self._layers):
            x = layer(x, rotary, lambda q, k, v, index=index: self._attend(cache, index, shape, q, k, v))
        return _norm(model.norm, x).view(*shape, -1)

    def _attend(self, cache: KeyValues, layer: int, shape: torch.Size, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Heads (M, H, K), (M, G, K), (M, G, K) → (M, H · K)."""
        query, key, value = (part.unflatten(0, shape) for part in (query, key, value))
        return cache.attend(layer, query, key, value, self._scaling).flatten(0, 1)


class _Layer:
    """One block: two residual branches, the norm before or behind each."""

    def __init__(self, layer: CM3DecoderLayer, join: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._norms, self._norm_behind = (layer.input_layernorm, layer.post_attention_layernorm), layer.norm_behind
        self._head_dim, self._scaling = attention.head_dim, attention.scaling
        self._kv_heads = attention.config.num_key_value_heads
        self._qkv = _Projection([attention.q_proj, attention.k_proj, attention.v_proj], join)
        self._head_norm = _HeadNorms(attention.q_norm, attention.k_norm, attention.config)
        self._out, self._down = _Projection([attention.o_proj], join), _Projection([mlp.down_proj], join)
        self._up = _Projection([mlp.up_proj] if mlp.gate_proj is None else [mlp.gate_proj, mlp.up_proj], join)
        self._gated, self._activation = mlp.gate_proj is not None, mlp.activation

    def __call__(self, x: Tensor, rotary: Sequence[Tensor] | None, attend: Callable[..., Tensor]) -> Tensor:  # (M, D)
        if self._norm_behind:
            x = x + _norm(self._norms[0], self._out(self._mixed(x, rotary, attend)))
            return x + _norm(self._norms[1], self._down(self._inner(x)))
        x = self._out.added_to(x, self._mixed(_norm(self._norms[0], x), rotary, attend))
        return self._down.added_to(x, self._inner(_norm(self._norms[1], x)))

    def _mixed(self, x: Tensor, rotary: Sequence[Tensor] | None, attend: Callable[..., Tensor]) -> Tensor:
        heads = self._qkv(x).view(len(x), -1, self._head_dim)  # (M, H + 2 G, K)
        asking, value = heads.split((heads.shape[1] - self._kv_heads, self._kv_heads), dim=1)
        asking = self._head_norm(asking)  # queries and keys (M, H + G, K)
        if rotary is not None:
            asking = rotate(asking, *rotary)
        query, key = asking.split((asking.shape[1] - self._kv_heads, self._kv_heads), dim=1)
        return attend(query, key, value)

    def _inner(self, x: Tensor) -> Tensor:
        x = self._up(x)
        if not self._gated:
            return self._activation(x)
        gate, up = x.chunk(2, dim=-1)
        return self._activation(gate) * up


class _HeadNorms:
    """The norms of queries and keys as one: LayerNorm over each head, then every head's gain and bias (H + G, K)."""

    def __init__(self, query: CM3HeadNorm | None, key: CM3HeadNorm | None, config: object) -> None:
        self._gain: Tensor | None = None
        self._bias: Tensor | None = None
        if query is None or key is None:
            return
        heads = (config.num_attention_heads, config.num_key_value_heads)  # type: ignore[attr-defined]
        self._shape, self._eps = query.head_shape, query.eps
        gains = [norm.weight.expand(count, -1) for norm, count in zip((query, key), heads)]
        self._gain = torch.cat(gains)
        if query.bias is not None and key.bias is not None:
            biases = ((query.bias, heads[0]), (key.bias, heads[1]))
            self._bias = torch.cat([bias.expand(count, -1) for bias, count in biases])

    def __call__(self, x: Tensor) -> Tensor:
        if self._gain is None:
            return x
        normed = F.layer_norm(x, self._shape, None, None, self._eps)
        return normed * self._gain if self._bias is None else torch.addcmul(self._bias, normed, self._gain)


class _Projection:
    """Linear maps of one input side by side: x (M, D) → (M, sum of their widths)."""

    def __init__(self, modules: Sequence[nn.Module], join: bool) -> None:
        self._modules: Sequence[nn.Module] = modules
        self._across: list[Tensor] = []
        plain = all(type(module) in (nn.Linear, ResidualOutput) and not _hooked(module) for module in modules)
        if plain and all(module.bias is None for module in modules):
            weights: list[Tensor] = [module.weight for module in modules]  # type: ignore[misc]
            self._across = [torch.cat(weights).t().contiguous()] if join else [weight.t() for weight in weights]

    def __call__(self, x: Tensor) -> Tensor:
        if not self._across:
            return torch.cat([module(x) for module in self._modules], dim=-1)
        if len(self._across) == 1:
            return torch.mm(x, self._across[0])
        return torch.cat([torch.mm(x, weight) for weight in self._across], dim=-1)

    def added_to(self, x: Tensor, given: Tensor) -> Tensor:
        """x (M, D) plus the map of `given`."""
        return torch.addmm(x, given, self._across[0]) if len(self._across) == 1 else x + self(given)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _norm(norm: CM3Norm, x: Tensor) -> Tensor:
    if norm.weight is None:
        return torch.layer_norm(x, norm.shape, None, None, norm.eps)
    return F.rms_norm(x, norm.shape, norm.weight, norm.eps)
