"""The rows of one batch in flight: their cache, where they stand, and the hidden states the next tokens are drawn from.

Request i is decoded as S_i streams; the streams of all requests, one request after the other, are the rows. Streams that
are equal (the unconditional one of every request, the prompt of several candidates) are computed once.
Shape letters: R requests, N rows, W new tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cm3.decode.cache import KeyValues
from cm3.decode.captured import NewRecorder, Step
from cm3.decode.prefill import prefill
from cm3.decode.prompts import Stream, distinct
from cm3.decode.step import Stepper
from cm3.model import CM3ForCausalLM


class Rows:
    """N rows after their prompts; `hidden` is where the next token is drawn from, `feed` appends what was drawn.

    streams: for each of R requests its streams; room: how many tokens will be fed at most behind the prompts; recorders:
    steps have fixed shapes and are run as these record them. Without, every step reads just what is there, which is
    least where nothing can be recorded.
    """

    @torch.inference_mode()
    def __init__(
        self, model: CM3ForCausalLM, streams: Sequence[Sequence[Stream]], room: int, recorders: NewRecorder | None = None
    ) -> None:
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
        self._recorders = recorders
        self._set_order()

    @torch.inference_mode()
    def hidden(self) -> Tensor:
        """(N, D) hidden states at the last token of every row; the next call may overwrite them."""
        if self._pending is not None:
            token_ids, grid_positions = (part[:, None] for part in self._pending)  # (R, 1)
            if self._record is None:
                hidden = self._forward.next(token_ids, grid_positions, self._fed)
            else:
                hidden = self._window(token_ids, grid_positions, torch.full_like(token_ids[:, 0], self._fed), self._fed)
            self._hidden = hidden[:, 0]
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

        token_ids, grid_positions: (R, W); fed: (R,) how many own tokens of each request stay in front of them. The next call
        may overwrite what is returned.
        """
        return self._window(token_ids, grid_positions, fed, int(fed.max()))

    @torch.inference_mode()
    def keep(self, requests: Sequence[int]) -> None:
        """Go on with some of the requests only, in the given order."""
        rows = [row for request in requests for row, owner in enumerate(self._owners) if owner == request]
        number = {request: new for new, request in enumerate(requests)}
        self._owners = [number[self._owners[row]] for row in rows]
        self._steps.clear()  # before the memory they were recorded on
        self._cache.select(rows)
        device = self._lengths.device
        kept = torch.tensor(rows, device=device)
        self._lengths, self._hidden = self._lengths[kept], self._hidden[kept]
        if self._pending is not None:
            chosen = torch.tensor(list(requests), device=device)
            self._pending = (self._pending[0][chosen], self._pending[1][chosen])
        self._set_order()

    def _window(self, token_ids: Tensor, grid_positions: Tensor, fed: Tensor, longest: int) -> Tensor:
        """`try_out`, where the largest of `fed` is known to be `longest`."""
        width = token_ids.shape[1]
        stop = self._cache.reach(longest + width, steady=self._record is not None)
        if self._record is None:
            return self._forward.up_to(stop, token_ids, grid_positions, fed)
        if (width, stop) not in self._steps:
            self._steps[width, stop] = self._record(partial(self._forward.up_to, stop))
        return self._steps[width, stop](token_ids, grid_positions, fed)

    def _set_order(self) -> None:
        """What is run on the rows as they are now: nothing of it is recorded yet."""
        device, order = self._lengths.device, self._cache.order
        owner_of = torch.tensor([self._owners[row] for row in order], device=device)
        lengths = self._lengths[torch.tensor(order, device=device)]
        moved = order != list(range(len(order)))
        back = torch.tensor(order, device=device).argsort() if moved else None
        self._forward = _Forward(self._step, self._cache, owner_of, lengths, back, self._last_position)
        self._record = None if self._recorders is None else self._recorders()
        self._steps: dict[tuple[int, int], Step] = {}  # by how many tokens they take and how many slots they read


@dataclass(frozen=True, eq=False)
class _Forward:
    """Forwards of all rows, by tables between rows as requests have them and rows as the cache has them.

    owner_of: (N,) the request of each of the cache's rows; lengths: (N,) of their prompts; back: (N,) where each row of the
    requests stands in the cache, None where the orders are the same; last_position: none behind it has a vector.
    """

    step: Stepper
    cache: KeyValues
    owner_of: Tensor
    lengths: Tensor
    back: Tensor | None
    last_position: int

    def next(self, token_ids: Tensor, grid_positions: Tensor, fed: int) -> Tensor:
        """One token (R, 1) of each request behind `fed` others."""
        self.cache.place_next(fed)
        return self._run(token_ids, grid_positions, fed)

    def up_to(self, stop: int, token_ids: Tensor, grid_positions: Tensor, fed: Tensor) -> Tensor:
        """Tokens (R, W) of each request behind `fed` (R,) others, of which `stop` slots are read.

        A function of these tensors, of fixed shapes, that never waits for the device.
        """
        of_rows = fed.index_select(0, self.owner_of)  # (N,)
        self.cache.place(of_rows, token_ids.shape[1], stop)
        return self._run(token_ids, grid_positions, of_rows[:, None])

    def _run(self, token_ids: Tensor, grid_positions: Tensor, fed: int | Tensor) -> Tensor:
        """token_ids and grid_positions (R, W) of the requests → hidden (N, W, D) of the rows."""
        steps = torch.arange(token_ids.shape[1], device=token_ids.device)
        positions = self.lengths[:, None] + fed + steps  # (N, W)
        if token_ids.shape[1] > 1:  # places behind the end of an answer are tried in vain, but must have a position
            positions = positions.clamp_max(self.last_position)
        token_rows, grid_rows = (part.index_select(0, self.owner_of) for part in (token_ids, grid_positions))
        hidden = self.step(token_rows, positions, grid_rows, self.cache)
        return hidden if self.back is None else hidden.index_select(0, self.back)
