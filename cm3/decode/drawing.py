"""From hidden states to tokens, for a batch in which every request may have a strategy, a sampling and legal ids of its own.

Requests that are drawn alike form a group: its rows go through the strategy together. The head is computed once, for the
range of ids that is legal somewhere in the batch.
Shape letters: R requests, N rows, S streams, W places in a row, V ids of the range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from cm3.core.protocols import DecodingStrategy
from cm3.decode.grammar import IdRanges
from cm3.decode.noise import gumbel_noise, picture_keys
from cm3.decode.records import Request
from cm3.decode.sampling import Sampling, draw, penalize
from cm3.model import CM3ForCausalLM
from cm3.tokens import Vocab

FORBIDDEN = -1e9  # finite, so that strategies may subtract streams; becomes -inf after they have


@dataclass(frozen=True)
class Manner:
    """How one request is drawn."""

    strategy: DecodingStrategy
    sampling: Sampling


@dataclass(frozen=True, eq=False)
class Legal:
    """What may come next: `id_range` [start, stop) to compute, and mask (R, V) bool of the legal among them (None: all)."""

    id_range: tuple[int, int]
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class _Group:
    """Requests (R',) drawn in the same manner, and the rows (R' · S) of their streams; None: all of them, in order."""

    manner: Manner
    requests: Tensor | None
    rows: Tensor | None
    streams: int


def manner_of(request: Request, strategy: DecodingStrategy, sampling: Sampling) -> Manner:
    """How `request` is drawn in a batch whose strategy and sampling are these."""
    strategy, sampling = request.strategy or strategy, request.sampling or sampling
    for_picture = getattr(strategy, "for_picture", None)
    return Manner(strategy, sampling) if for_picture is None else Manner(*for_picture(request.picture, sampling))


class Drawer:
    """Draws tokens for the unfinished requests of a batch.

    manners: of each request; sources: for each of its streams which of its rows that is (equal streams share one).
    """

    def __init__(
        self,
        requests: Sequence[Request],
        manners: Sequence[Manner],
        sources: Sequence[tuple[int, ...]],
        model: CM3ForCausalLM,
        vocab: Vocab,
    ) -> None:
        self._model, self._vocab, device = model, vocab, model.device
        self._manners, self._sources = list(manners), list(sources)
        self._keys = picture_keys([(request.seed, request.picture) for request in requests], device)
        self.random = any(manner.sampling.temperature > 0 for manner in manners)
        self._masks: dict[IdRanges, Tensor] = {}
        self._seen: Tensor | None = None  # (R, ids of the vocabulary) bool, kept only where a penalty asks for it
        if any(manner.sampling.repetition_penalty != 1.0 for manner in manners):
            self._seen = torch.zeros(len(requests), vocab.size, dtype=torch.bool, device=device)
            for row, request in zip(self._seen, requests):
                row[torch.from_numpy(request.prompt.token_ids).to(device)] = True
        self._group()

    def keep(self, requests: Sequence[int]) -> None:
        """Go on with some of the requests, in the given order."""
        kept = torch.tensor(list(requests), device=self._keys.device)
        self._manners = [self._manners[index] for index in requests]
        self._sources = [self._sources[index] for index in requests]
        self._keys = self._keys[kept]
        self._seen = None if self._seen is None else self._seen[kept]
        self._group()

    def legal(self, allowed: Sequence[IdRanges]) -> Legal:
        """The legal ids of each request as one range and a mask."""
        low, high = min(ranges[0] for row in allowed for ranges in row), max(ranges[1] for row in allowed for ranges in row)
        if all(row == ((low, high),) for row in allowed):
            return Legal((low, high), None)
        return Legal((low, high), torch.stack([self._mask_of(row) for row in allowed])[:, low:high])

    def noise(self, first: int | Tensor, count: int, legal: Legal) -> Tensor | None:
        """Noise (R, count, V) of the places from `first` on; None when nothing is drawn at random."""
        return gumbel_noise(self._keys, first, count, legal.id_range) if self.random else None

    def draw(self, hidden: Tensor, legal: Legal, noise: Tensor | None, tried: Tensor | None = None, ahead: int = 0) -> Tensor:
        """Token ids (R, W + ahead) from hidden states (N, W, D) and noise (R, W + ahead, V).

        tried: (R, W + ahead - 1) tokens that stand between the places and that nobody has counted as seen yet; ahead: how
        many places behind the last are guessed from its distribution, with their own noise.
        """
        start = legal.id_range[0]
        logits = self._model.project(hidden, legal.id_range).float()  # (N, W, V)
        if ahead:
            logits = torch.cat((logits, logits[:, -1:].expand(-1, ahead, -1)), dim=1)
        if len(self._groups) == 1:
            return self._of_group(self._groups[0], logits, legal, noise, tried) + start
        tokens = logits.new_empty((len(self._manners), logits.shape[1]), dtype=torch.int64)
        for group in self._groups:
            tokens[group.requests] = self._of_group(group, logits, legal, noise, tried)
        return tokens + start

    def count(self, token_ids: Tensor) -> None:
        """Count tokens (R,) as seen, for the repetition penalty."""
        if self._seen is not None:
            self._seen.scatter_(1, token_ids[:, None], True)

    @property
    def counts(self) -> bool:
        """Whether anybody asks what was seen."""
        return self._seen is not None

    def _of_group(self, group: _Group, logits: Tensor, legal: Legal, noise: Tensor | None, tried: Tensor | None) -> Tensor:
        """Indices (R', W) into the range."""
        mask, sampling, width = legal.mask, group.manner.sampling, logits.shape[1]
        logits = logits if group.rows is None else logits[group.rows]
        if group.requests is not None:
            mask = None if mask is None else mask[group.requests]
            noise = None if noise is None else noise[group.requests]
        streams = logits.view(-1, group.streams, *logits.shape[-2:]).transpose(1, 2)  # (R', W, S, V)
        streams = streams.flatten(0, 1)  # (R' · W, S, V)
        if mask is None:
            joined = group.manner.strategy.combine(streams)  # (R' · W, V)
        else:
            mask = mask.repeat_interleave(width, dim=0) if width > 1 else mask
            joined = group.manner.strategy.combine(streams.masked_fill(~mask[:, None], FORBIDDEN))
            joined = joined.masked_fill(~mask, -torch.inf)
        if self._seen is not None and sampling.repetition_penalty != 1.0:
            seen = self._seen_at(group, width, tried)[:, legal.id_range[0] : legal.id_range[1]]
            joined = penalize(joined, seen, sampling.repetition_penalty)
        return draw(joined, sampling, None if noise is None else noise.flatten(0, 1)).view(-1, width)

    def _seen_at(self, group: _Group, width: int, tried: Tensor | None) -> Tensor:
        """What was seen before each place: (R' · W, ids) bool."""
        seen = self._seen if group.requests is None else self._seen[group.requests]  # type: ignore[index]
        if width == 1 or tried is None:
            return seen  # type: ignore[return-value]
        tried = tried if group.requests is None else tried[group.requests]
        places = [seen]
        for index in range(width - 1):
            places.append(places[-1].scatter(1, tried[:, index, None], True))  # type: ignore[union-attr]
        return torch.stack(places, dim=1).flatten(0, 1)  # type: ignore[arg-type]

    def _mask_of(self, ranges: IdRanges) -> Tensor:
        if ranges not in self._masks:
            mask = torch.zeros(self._vocab.size, dtype=torch.bool, device=self._keys.device)
            for start, stop in ranges:
                mask[start:stop] = True
            self._masks[ranges] = mask
        return self._masks[ranges]

    def _group(self) -> None:
        """Sort the requests into groups."""
        members: dict[tuple[Manner, tuple[int, ...]], list[int]] = {}
        for index, key in enumerate(zip(self._manners, self._sources)):
            members.setdefault(key, []).append(index)
        counts = [max(sources) + 1 for sources in self._sources]  # rows of each request
        first, device = [0, *accumulate(counts)], self._keys.device
        self._groups = []
        for (manner, sources), requests in members.items():
            rows = torch.tensor([first[index] + source for index in requests for source in sources], device=device)
            alone = len(members) == 1
            in_order = alone and len(sources) == counts[0]
            of_group = None if alone else torch.tensor(requests, device=device)
            self._groups.append(_Group(manner, of_group, None if in_order else rows, len(sources)))
