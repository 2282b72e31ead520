"""Keys and values of everything the rows have seen, allocated once, and attention of a few new tokens to them.

A row is a prompt (its prefix, computed once by `prefill`) and the tokens behind it (its own, written in place). Two layouts:

    together   every row has a copy of its prefix in front of its own tokens: one product per layer; for short prompts
    shared     rows with one prefix read the same copy of it: retrieved documents and long prompts are neither copied nor
               read once per candidate (shared-prefix or cascade attention)

Rows stand in an order of the cache's own, `order`, in which rows with the same prefix are neighbors.
Shape letters: L layers, N rows, U prefixes, C rows of a prefix, W new tokens of a row, P prefix and S own slots, H query
heads, G key/value heads, r = H / G, K head width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3.model.attention_patterns import additive

SHARE_FROM = 96  # prefixes at least this long are shared; below it, one product over copies is faster than two
_MOST_BLOCKS = 8
# With c seconds to record a step, t tokens and k seconds to read a slot, recording every b slots costs c · t / b and what is
# read in vain k · t · b / 2, the least at b² = 2 c / k. This is 2 c · 3 TB/s of an H100, c guessed at 20 ms; k is bytes / 3 TB/s.
_BYTES_PER_RECORDING = 1.2e11
_GRAIN = 16


@dataclass(frozen=True, eq=False)
class _Block:
    """Rows [start, stop) of the cache's order: `count` rows on each of U prefixes of P tokens.

    keys, values: L tensors (U, G, P, K).
    """

    start: int
    stop: int
    keys: list[Tensor]
    values: list[Tensor]


class KeyValues:
    """The keys and values of N rows.

    prefixes: keys and values (L, 2, G, T, K) of the different prompts; prefix_of: for each row which of them it begins
    with; room: how many tokens of its own a row may get; queries_per_key: r.
    """

    def __init__(self, prefixes: Sequence[Tensor], prefix_of: Sequence[int], room: int, queries_per_key: int = 1) -> None:
        self._prefixes, self._queries_per_key = list(prefixes), queries_per_key
        self._prefix_of = list(prefix_of)
        lengths = [prefix.shape[3] for prefix in prefixes]
        counts = Counter(self._prefix_of)
        kinds = {(lengths[prefix], count) for prefix, count in counts.items()}
        worth_it = max(counts.values()) > 1 or len(set(lengths)) > 1  # copies to save, or padding
        shared = max(lengths) >= SHARE_FROM and worth_it and len(kinds) <= _MOST_BLOCKS
        self._front = 0 if shared else max(lengths)  # own slots that are taken by copies of the prefixes
        self.order = list(range(len(self._prefix_of)))
        layers, _, heads, _, width = prefixes[0].shape
        shape = (layers, 2, len(self.order), heads, self._front + room, width)
        self._own = prefixes[0].new_zeros(shape)
        self._padding: Tensor | None = None
        self._blocks: list[_Block] | None = None
        if shared:
            self._arrange()
        else:
            self._copy_prefixes(lengths)
        self._views()

    def select(self, rows: Sequence[int]) -> None:
        """Go on with some rows: new row i is what row `rows[i]` was. Row numbers are those of the caller, not of `order`."""
        place = {row: index for index, row in enumerate(self.order)}
        kept = torch.tensor([place[row] for row in rows], device=self._own.device)
        self._prefix_of = [self._prefix_of[row] for row in rows]
        self._own = self._own[:, :, kept]
        self.order = list(range(len(rows)))
        if self._padding is not None:
            self._padding = self._padding[kept]
        if self._blocks is not None:
            self._arrange()
        self._views()

    def place_next(self, written: int) -> None:
        """Say where the next token of every row goes: behind `written` own tokens, and no further is read."""
        self._slots: int | tuple[Tensor, Tensor] = self._front + written
        self._stop = self._slots + 1
        self._mask = None if self._all_padding is None else self._all_padding[..., : self._stop]

    def place(self, written: Tensor, width: int, stop: int) -> None:
        """Say where the next `width` tokens of every row go: behind its `written` (N,) own tokens, rows in `order`.

        stop: how many slots are read, the same for all rows (`reach`); those a token may not see are masked. Shapes depend on
        `width` and `stop` alone and nothing waits for the device.
        """
        device = written.device
        slots = self._front + written[:, None] + torch.arange(width, device=device)  # (N, W)
        self._slots = (torch.arange(len(written), device=device)[:, None], slots)
        self._stop = stop
        visible = torch.arange(stop, device=device) <= slots[:, :, None]  # (N, W, S)
        self._mask = self._to_heads(self._with_padding(visible))

    def reach(self, tokens: int, steady: bool = False) -> int:
        """How many slots hold the first `tokens` own tokens of every row and all before them.

        steady: rounded up, so that the number, and with it the shapes of a step, changes rarely. The more a slot holds, the
        more it costs to read too many, and the sooner it is worth recording a step again.
        """
        exact, all_slots = self._front + tokens, self._own.shape[4]
        if not steady:
            return exact
        bytes_per_slot = self._own.nbytes / all_slots
        rounded_to = _GRAIN * max(1, round((_BYTES_PER_RECORDING / bytes_per_slot) ** 0.5 / _GRAIN))
        return min(all_slots, -(-exact // rounded_to) * rounded_to)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Write keys and values (N, W, G, K) to their places and mix: query (N, W, H, K) → (N, W, H · K)."""
        keys, values = self._keys[layer], self._values[layer]  # (N, G, S, K)
        if isinstance(self._slots, int):
            keys[:, :, self._slots], values[:, :, self._slots] = key[:, 0], value[:, 0]
        else:
            rows, slots = self._slots
            keys[rows, :, slots], values[rows, :, slots] = key, value
        batch, width, heads, head_dim = query.shape
        groups = keys.shape[1]
        grouped = (query * scaling).view(batch, width, groups, heads // groups, head_dim).transpose(1, 2)  # (N, G, W, r, K)
        grouped = grouped.reshape(batch * groups, width * heads // groups, head_dim)  # (N · G, W · r, K)
        if self._blocks is None:
            mixed = _mix(self._scores(grouped, keys, 0), values.flatten(0, 1)[:, : self._stop])
        else:
            blocks = [self._of_block(block, layer, grouped, keys, values) for block in self._blocks]
            mixed = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
        mixed = mixed.view(batch, groups, width, heads // groups, head_dim).transpose(1, 2)  # (N, W, G, r, K)
        return mixed.reshape(batch, width, heads * head_dim)

    def _scores(self, query: Tensor, keys: Tensor, first: int) -> Tensor:
        """Masked scores (n · G, W · r, S) of queries (n · G, W · r, K) and own keys (n, G, S, K) from row `first`."""
        across = keys.flatten(0, 1)[:, : self._stop].transpose(1, 2)  # (n · G, K, S)
        if self._mask is None:
            return torch.bmm(query, across)
        mask = self._mask[first * keys.shape[1] : (first + len(keys)) * keys.shape[1]]
        return torch.baddbmm(mask, query, across)

    def _of_block(self, block: _Block, layer: int, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of one block to its prefixes and its own tokens: (n · G, W · r, K)."""
        groups = keys.shape[1]
        rows, heads = slice(block.start, block.stop), slice(block.start * groups, block.stop * groups)
        own = self._scores(query[heads], keys[rows], block.start)  # (n · G, W · r, S)
        prefix_keys, prefix_values = block.keys[layer].flatten(0, 1), block.values[layer].flatten(0, 1)  # (U · G, P, K)
        gathered = self._gather(query[heads], block, groups)  # (U · G, C · W · r, K)
        before = self._spread(torch.bmm(gathered, prefix_keys.transpose(1, 2)), block, groups)  # (n · G, W · r, P)
        weights = torch.cat((before, own), dim=-1).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        of_prefix, of_own = weights.split((before.shape[-1], own.shape[-1]), dim=-1)
        mixed = self._spread(torch.bmm(self._gather(of_prefix, block, groups), prefix_values), block, groups)
        return torch.baddbmm(mixed, of_own, values[rows].flatten(0, 1)[:, : self._stop])

    @staticmethod
    def _gather(x: Tensor, block: _Block, groups: int) -> Tensor:
        """(U · C · G, Q, Z) → (U · G, C · Q, Z): what all rows of a prefix ask of it, side by side."""
        prefixes = len(block.keys[0])
        split = x.view(prefixes, -1, groups, *x.shape[1:]).transpose(1, 2)  # (U, G, C, Q, Z)
        return split.reshape(prefixes * groups, -1, x.shape[-1])

    @staticmethod
    def _spread(x: Tensor, block: _Block, groups: int) -> Tensor:
        """The inverse of `_gather`."""
        prefixes, count = len(block.keys[0]), (block.stop - block.start) // len(block.keys[0])
        split = x.view(prefixes, groups, count, -1, x.shape[-1]).transpose(1, 2)  # (U, C, G, Q, Z)
        return split.reshape(prefixes * count * groups, -1, x.shape[-1])

    def _arrange(self) -> None:
        """Bring rows with the same prefix together and make the blocks."""
        counts = Counter(self._prefix_of)
        kind = {prefix: (self._prefixes[prefix].shape[3], counts[prefix], prefix) for prefix in counts}
        rows = sorted(range(len(self._prefix_of)), key=lambda row: kind[self._prefix_of[row]])
        if rows != self.order:
            self._own = self._own[:, :, torch.tensor(rows, device=self._own.device)]
        self.order = rows
        kinds: dict[tuple[int, int], list[int]] = {}
        for prefix in sorted(counts, key=lambda prefix: kind[prefix]):
            kinds.setdefault(kind[prefix][:2], []).append(prefix)
        self._blocks, start = [], 0
        for (_, count), prefixes in kinds.items():
            stacked = torch.stack([self._prefixes[prefix] for prefix in prefixes], dim=2)  # (L, 2, U, G, P, K)
            stop = start + count * len(prefixes)
            self._blocks.append(_Block(start, stop, list(stacked[:, 0].unbind(0)), list(stacked[:, 1].unbind(0))))
            for place, prefix in enumerate(prefixes):
                self._prefixes[prefix] = stacked[:, :, place]  # the one copy that is kept
            start = stop

    def _copy_prefixes(self, lengths: Sequence[int]) -> None:
        """Put a copy of its prefix in front of every row, padded on the left where prompts are of different lengths."""
        for row, prefix in enumerate(self._prefix_of):
            self._own[:, :, row, :, self._front - lengths[prefix] : self._front] = self._prefixes[prefix]
        if len(set(lengths)) > 1:
            padding = [self._front - lengths[prefix] for prefix in self._prefix_of]
            self._padding = torch.tensor(padding, device=self._own.device)  # (N,)
        self._prefixes = []

    def _views(self) -> None:
        self._keys, self._values = list(self._own[:, 0].unbind(0)), list(self._own[:, 1].unbind(0))
        self._all_padding: Tensor | None = None
        if self._padding is not None:
            slots = torch.arange(self._own.shape[4], device=self._own.device)
            self._all_padding = self._to_heads((slots >= self._padding[:, None])[:, None])  # (N · G, 1, slots)

    def _with_padding(self, visible: Tensor) -> Tensor:
        if self._padding is None:
            return visible
        slots = torch.arange(self._stop, device=visible.device)
        return visible & (slots >= self._padding[:, None, None])

    def _to_heads(self, visible: Tensor) -> Tensor:
        """(N, W, S) bool → additive (N · G, W · r or 1, S), as scores are laid out."""
        if visible.shape[1] > 1:
            visible = visible.repeat_interleave(self._queries_per_key, dim=1)
        return additive(visible, self._own.dtype)[:, None].expand(-1, self._own.shape[3], -1, -1).flatten(0, 1)


def _mix(scores: Tensor, values: Tensor) -> Tensor:
    """Softmax in float32, then the weighted sum: (B, Q, S), (B, S, K) → (B, Q, K)."""
    return torch.bmm(scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype), values)
