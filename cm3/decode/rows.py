"""The rows of one batch in flight: their cache, where they stand, and the hidden states the next tokens are drawn from.

Request i is decoded as S_i streams; the streams of all requests, one request after the other, are the rows. Streams that
are equal (the unconditional one of every request, the prompt of several candidates) are computed once.
Shape letters: R requests, N rows, W new tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cm3.decode.cache import KeyValues
from cm3.decode.prefill import prefill
from cm3.decode.prompts import Stream, distinct
from cm3.decode.step import Stepper
from cm3.model import CM3ForCausalLM


class Rows:
    """N rows after their prompts; `hidden` is where the next token is drawn from, `feed` appends what was drawn.

    streams: for each of R requests its streams; room: how many tokens will be fed at most behind the prompts.
    """

    @torch.inference_mode()
    def __init__(self, model: CM3ForCausalLM, streams: Sequence[Sequence[Stream]], room: int) -> None:
        kept, index = distinct([stream for request in streams for stream in request])
        prefixes, device, config = prefill(model.model, kept), model.device, model.config
        self._owners = [number for number, request in enumerate(streams) for _ in request]
        per_key = config.num_attention_heads // config.num_key_value_heads
        self._cache = KeyValues([prefix.keys_values for prefix in prefixes], index, room, per_key)
        lengths = [len(stream.token_ids) for stream in kept]
        positions = min(max(lengths) + room, config.max_position_embeddings)
        self._step, self._last_position = Stepper(model.model, positions), positions - 1
        self._lengths = torch.tensor([lengths[prefix] for prefix in index], device=device)  # (N,) of the prompts
        self._hidden = torch.stack([prefixes[prefix].hidden for prefix in index])  # (N, D)
        self._pending: tuple[Tensor, Tensor] | None = None
        self._fed = 0
        self._set_order()

    @torch.inference_mode()
    def hidden(self) -> Tensor:
        """(N, D) hidden states at the last token of every row."""
        if self._pending is not None:
            token_ids, grid_positions = self._pending
            self._cache.place(self._fed, 1)
            self._hidden = self._run(token_ids[:, None], grid_positions[:, None], self._fed)[:, 0]
            self._pending, self._fed = None, self._fed + 1
        return self._hidden

    def feed(self, token_ids: Tensor, grid_positions: Tensor) -> None:
        """Append one token per request: token_ids (R,) and grid_positions (R,), the same to all its rows.

        Nothing is computed before the next `hidden()`, so the last token of an answer costs nothing.
        """
        self._pending = (token_ids, grid_positions)

    @torch.inference_mode()
    def try_out(self, token_ids: Tensor, grid_positions: Tensor, fed: Tensor) -> Tensor:
        """Hidden states (N, W, D) of W tokens per request, of which nobody knows yet how many will stay.

        token_ids, grid_positions: (R, W); fed: (R,) how many own tokens of each request stay in front of them.
        """
        of_rows = fed.index_select(0, self._owner_of)  # (N,) in the cache's order
        self._cache.place(of_rows, token_ids.shape[1])
        return self._run(token_ids, grid_positions, of_rows[:, None])

    @torch.inference_mode()
    def keep(self, requests: Sequence[int]) -> None:
        """Go on with some of the requests only, in the given order."""
        rows = [row for request in requests for row, owner in enumerate(self._owners) if owner == request]
        number = {request: new for new, request in enumerate(requests)}
        self._owners = [number[self._owners[row]] for row in rows]
        self._cache.select(rows)
        device = self._lengths.device
        kept = torch.tensor(rows, device=device)
        self._lengths, self._hidden = self._lengths[kept], self._hidden[kept]
        if self._pending is not None:
            chosen = torch.tensor(list(requests), device=device)
            self._pending = (self._pending[0][chosen], self._pending[1][chosen])
        self._set_order()

    def _run(self, token_ids: Tensor, grid_positions: Tensor, fed: int | Tensor) -> Tensor:
        """One forward: token_ids and grid_positions (R, W) of the requests → hidden (N, W, D) of the rows."""
        steps = torch.arange(token_ids.shape[1], device=token_ids.device)
        positions = self._ordered_lengths[:, None] + fed + steps  # (N, W)
        if token_ids.shape[1] > 1:  # places behind the end of an answer are tried in vain, but must have a position
            positions = positions.clamp_max(self._last_position)
        of_rows = (part.index_select(0, self._owner_of) for part in (token_ids, grid_positions))
        token_rows, grid_rows = of_rows
        hidden = self._step(token_rows, positions, grid_rows, self._cache)
        return hidden if self._back is None else hidden.index_select(0, self._back)

    def _set_order(self) -> None:
        """Tables between rows as requests have them and rows as the cache has them."""
        device, order = self._lengths.device, self._cache.order
        self._owner_of = torch.tensor([self._owners[row] for row in order], device=device)  # (N,)
        self._ordered_lengths = self._lengths[torch.tensor(order, device=device)]
        self._back: Tensor | None = None
        if order != list(range(len(order))):
            self._back = torch.tensor(order, device=device).argsort()
