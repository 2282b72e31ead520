"""The rows of one batch in flight: their cache, where they stand, and the hidden state the next token is drawn from.

R requests with S streams each are R · S rows, request-major. Streams that are equal (the unconditional one of every
request, the prompt of several candidates) are prefilled once and spread. Shape letters as in `cm3.model.modeling`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cm3.decode.cache import StaticCache
from cm3.decode.prompts import Stream
from cm3.model import CM3ForCausalLM
from cm3.model.attention_patterns import additive


class Rows:
    """R · S rows after their prompts; `hidden()` is where the next token is drawn from, `feed` appends it.

    streams: for each of R requests its S streams; room: how many tokens will be fed at most behind the prompts.
    """

    @torch.inference_mode()
    def __init__(self, model: CM3ForCausalLM, streams: Sequence[Sequence[Stream]], room: int) -> None:
        self._model = model.model
        self.streams_per_request = len(streams[0])
        distinct, index = _distinct([stream for request in streams for stream in request])
        self._pending: tuple[Tensor, Tensor] | None = None
        self._padding_mask: Tensor | None = None
        self._hidden = self._prefill(distinct, room)
        if index != list(range(len(distinct))):
            self._select(torch.tensor(index, device=model.device))

    @torch.inference_mode()
    def hidden(self) -> Tensor:
        """(R · S, D) hidden states at the last token of every row."""
        if self._pending is not None:
            self._hidden, self._pending = self._step(*self._pending), None
        return self._hidden

    def feed(self, token_ids: Tensor, grid_positions: Tensor) -> None:
        """Append one token per request: token_ids (R,) and grid_positions (R,), the same to all its streams.

        Nothing is computed before the next `hidden()`, so the last token of an answer costs nothing.
        """
        self._pending = (token_ids, grid_positions)

    @torch.inference_mode()
    def keep(self, requests: Tensor) -> None:
        """Go on with some of the requests only: indices (R',) int64."""
        if self._pending is not None:
            self._pending = (self._pending[0][requests], self._pending[1][requests])
        streams = torch.arange(self.streams_per_request, device=requests.device)
        self._select((requests[:, None] * self.streams_per_request + streams).flatten())

    def _prefill(self, streams: Sequence[Stream], room: int) -> Tensor:
        """Run the prompts of U streams; (U, D) hidden states at their last tokens."""
        device, config = self._model.device, self._model.config
        lengths = torch.tensor([len(stream.token_ids) for stream in streams])
        longest = int(lengths.max())
        padding = (longest - lengths).to(device)  # (U,)
        token_ids = _left_padded([stream.token_ids for stream in streams], longest, config.pad_token_id or 0).to(device)
        grid_positions = _left_padded([stream.grid_positions for stream in streams], longest, 0).to(device)
        slots = torch.arange(longest, device=device)
        mask = None
        if bool(padding.any()) or config._attn_implementation != "sdpa":
            mask = additive(_visible(slots, padding), self._model.dtype)  # (U, 1, P, P)
        if bool(padding.any()):
            all_slots = torch.arange(longest + room, device=device)
            self._padding_mask = additive(
                (all_slots >= padding[:, None])[:, None, None], self._model.dtype
            )  # (U, 1, 1, P + room)
        self._cache = StaticCache(config, len(streams), longest + room, self._model.dtype, device)
        self._positions = lengths.to(device)  # (U,) the position of the next token
        output = self._model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=(slots - padding[:, None]).clamp_min(0),
            grid_positions=grid_positions,
            past_key_values=self._cache,
        )
        self._cache.advance(longest)
        return output.last_hidden_state[:, -1]

    def _step(self, token_ids: Tensor, grid_positions: Tensor) -> Tensor:
        mask = None if self._padding_mask is None else self._padding_mask[..., : self._cache.length + 1]
        output = self._model(
            input_ids=token_ids.repeat_interleave(self.streams_per_request)[:, None],
            attention_mask=mask,
            position_ids=self._positions[:, None],
            grid_positions=grid_positions.repeat_interleave(self.streams_per_request)[:, None],
            past_key_values=self._cache,
        )
        self._cache.advance(1)
        self._positions = self._positions + 1
        return output.last_hidden_state[:, -1]

    def _select(self, rows: Tensor) -> None:
        self._cache.select(rows)
        self._positions, self._hidden = self._positions[rows], self._hidden[rows]
        if self._padding_mask is not None:
            self._padding_mask = self._padding_mask[rows]


def _distinct(streams: Sequence[Stream]) -> tuple[list[Stream], list[int]]:
    """The different streams among `streams`, and for each of them which one it is."""
    seen: dict[tuple[bytes, bytes], int] = {}
    kept: list[Stream] = []
    index = []
    for stream in streams:
        key = (stream.token_ids.tobytes(), stream.grid_positions.tobytes())
        if key not in seen:
            seen[key] = len(kept)
            kept.append(stream)
        index.append(seen[key])
    return kept, index


def _left_padded(rows: Sequence[np.ndarray], length: int, value: int) -> Tensor:
    padded = np.full((len(rows), length), value, np.int64)
    for row, content in zip(padded, rows):
        row[length - len(content) :] = content
    return torch.from_numpy(padded)


def _visible(slots: Tensor, padding: Tensor) -> Tensor:
    """(U, 1, P, P) bool: earlier tokens of the row that are no padding; padding sees itself, so that no row is empty."""
    causal = slots[:, None] >= slots[None, :]
    content = (slots >= padding[:, None])[:, None, None, :]  # (U, 1, 1, P)
    return (causal & content) | torch.eye(len(slots), dtype=torch.bool, device=slots.device)
