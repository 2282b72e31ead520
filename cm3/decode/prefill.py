"""Prompts into the model: the keys, the values and the last hidden state of every different stream, each computed once.

Streams of similar length run in one forward (padded on the left), so a prompt of three tokens beside one with two thousand
does not cost two thousand. A forward takes no more tokens than fill the machine, so that what it needs for a moment is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cm3.decode.prompts import Stream
from cm3.model import CM3Config
from cm3.model.attention_patterns import additive
from cm3.model.modeling import CM3Model

_GROWTH, _SLACK = 1.25, 8  # streams run together up to so many times (and tokens more than) the length of the shortest
TOKENS_AT_ONCE = 4096  # of one forward, padding included, unless a single stream has more


@dataclass(frozen=True, eq=False)
class Prefix:
    """What the model keeps of a stream of T tokens: keys_values (L, 2, G, T, K), hidden (D,) at its last token."""

    keys_values: Tensor
    hidden: Tensor


@torch.inference_mode()
def prefill(model: CM3Model, streams: Sequence[Stream]) -> list[Prefix]:
    """The prefixes of `streams`, in their order."""
    by_length = sorted(range(len(streams)), key=lambda index: len(streams[index].token_ids))
    prefixes: dict[int, Prefix] = {}
    while by_length:
        most = len(streams[by_length[0]].token_ids) * _GROWTH + _SLACK
        together = [index for index in by_length if len(streams[index].token_ids) <= most]
        together = together[: max(1, TOKENS_AT_ONCE // len(streams[together[-1]].token_ids))]
        by_length = by_length[len(together) :]
        prefixes.update(zip(together, _run(model, [streams[index] for index in together])))
    return [prefixes[index] for index in range(len(streams))]


class _Recorder:
    """A `transformers` cache for one forward: it keeps what it is given (`update`), and is empty before."""

    is_compileable = False

    def __init__(self, config: CM3Config) -> None:
        self.layers: list[Tensor] = [torch.empty(0)] * config.num_hidden_layers

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing was seen before."""
        return 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keep keys and values (U, G, P, K)."""
        self.layers[layer_idx] = torch.stack((key, value))  # (2, U, G, P, K)
        return key, value


def _run(model: CM3Model, streams: Sequence[Stream]) -> list[Prefix]:
    config, device = model.config, model.device
    lengths = torch.tensor([len(stream.token_ids) for stream in streams])
    longest = int(lengths.max())
    padding = (longest - lengths).to(device)  # (U,)
    slots = torch.arange(longest, device=device)
    mask = None
    if bool(padding.any()) or config._attn_implementation != "sdpa":
        mask = additive(_visible(slots, padding), model.dtype)  # (U, 1, P, P)
    recorder = _Recorder(config)
    output = model(
        input_ids=_left_padded([stream.token_ids for stream in streams], longest, config.pad_token_id or 0).to(device),
        attention_mask=mask,
        position_ids=(slots - padding[:, None]).clamp_min(0),
        grid_positions=_left_padded([stream.grid_positions for stream in streams], longest, 0).to(device),
        past_key_values=recorder,
    )
    stacked = torch.stack(recorder.layers)  # (L, 2, U, G, P, K)
    hidden = output.last_hidden_state[:, -1]  # (U, D)
    starts = padding.tolist()
    return [Prefix(stacked[:, :, row, :, start:], hidden[row]) for row, start in enumerate(starts)]


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
