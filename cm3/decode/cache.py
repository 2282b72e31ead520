"""Keys and values of everything a row has seen, allocated once and written in place.

All rows stand at the same place (prompts are padded on the left), so one counter says where the next tokens go. The model
sees it as a `transformers` cache: `update`, `get_seq_length` and `is_compileable` are what it uses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cm3.model import CM3Config


class StaticCache:
    """Keys and values (L, 2, R, G, S, K) of R rows with room for S tokens."""

    is_compileable = False

    def __init__(self, config: CM3Config, rows: int, room: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.num_hidden_layers, 2, rows, config.num_key_value_heads, room, config.head_dim)
        self._store = torch.zeros(shape, dtype=dtype, device=device)
        self._layers = list(self._store.unbind(0))
        self.length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens were seen."""
        return self.length

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write keys and values (R, G, q, K) behind those that are there; returns all (R, G, length + q, K).

        The counter moves by `advance`, after all layers have written.
        """
        stop = self.length + key.shape[2]
        keys, values = self._layers[layer_idx].unbind(0)
        keys[:, :, self.length : stop] = key
        values[:, :, self.length : stop] = value
        return keys[:, :, :stop], values[:, :, :stop]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as seen."""
        self.length += tokens

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows: row i becomes what row `rows[i]` was."""
        self._store = self._store[:, :, rows]
        self._layers = list(self._store.unbind(0))
