"""One batch under way: the unfinished requests, their walks through the grammar, their rows, and one token after another.

A turn draws as many tokens as are legal for every request without looking at them (a whole picture in a batch of
pictures), lets every walk see its tokens, and drops the requests that are finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3.core.protocols import DecodingStrategy
from cm3.decode.captured import NewRecorder
from cm3.decode.drawing import Drawer, Legal, Manner, manner_of
from cm3.decode.grammar import Reason, RowWalk
from cm3.decode.noise import chunk_length
from cm3.decode.prompts import Stream, distinct
from cm3.decode.records import Request
from cm3.decode.rows import Rows
from cm3.decode.sampling import Sampling
from cm3.model import CM3ForCausalLM
from cm3.tokens import Vocab


@dataclass(frozen=True)
class Emission:
    """Tokens that request number `request` has just got; `reason` when they are its last."""

    request: int
    token_ids: tuple[int, ...]
    reason: Reason | None


@dataclass(frozen=True, eq=False)
class Plan:
    """Requests with the manner of each, its different streams, and for every stream of its strategy which of these it is.

    Streams are equal where there is no condition to leave out; such a request is decoded in one row.
    """

    requests: Sequence[Request]
    manners: Sequence[Manner]
    streams: Sequence[Sequence[Stream]]
    sources: Sequence[tuple[int, ...]]

    @classmethod
    def of(cls, requests: Sequence[Request], strategy: DecodingStrategy, sampling: Sampling) -> Plan:
        """Every request with its own strategy and sampling, or with these."""
        manners = [manner_of(request, strategy, sampling) for request in requests]
        streams = [distinct(manner.strategy.streams(request.prompt)) for manner, request in zip(manners, requests)]
        return cls(requests, manners, [kept for kept, _ in streams], [tuple(index) for _, index in streams])

    def first(self, count: int) -> Plan:
        """The first `count` requests alone."""
        return Plan(self.requests[:count], self.manners[:count], self.streams[:count], self.sources[:count])


class Flight:
    """A batch in flight; slack: how many tokens beyond an answer may be tried; recorders: see `Rows`."""

    def __init__(
        self, plan: Plan, model: CM3ForCausalLM, vocab: Vocab, slack: int = 0, recorders: NewRecorder | None = None
    ) -> None:
        requests = plan.requests
        self.vocab = vocab
        self.numbers = list(range(len(requests)))
        self.walks = [RowWalk(request.answer, vocab) for request in requests]
        self.drawer = Drawer(requests, plan.manners, plan.sources, model, vocab)
        room = max(request.answer.max_tokens(vocab) for request in requests) + slack
        self.rows = Rows(model, plan.streams, room, recorders)
        self.device = model.device
        self.drawn = 0

    def legal(self) -> Legal:
        """The legal ids of the next token of every request."""
        return self.drawer.legal([walk.allowed for walk in self.walks])

    def turn(self, longest: int) -> list[Emission]:
        """Draw up to `longest` tokens for every request."""
        return self.advance(self._draw(min(longest, min(walk.remaining for walk in self.walks))).tolist())

    def advance(self, tokens: Sequence[Sequence[int]]) -> list[Emission]:
        """Let every walk see its tokens; finished requests leave the batch."""
        emissions = []
        for number, walk, drawn in zip(self.numbers, self.walks, tokens):
            walk.advance(drawn)
            emissions.append(Emission(number, tuple(drawn), walk.reason))
        going = [index for index, walk in enumerate(self.walks) if not walk.done]
        if 0 < len(going) < len(self.walks):
            self.keep(going)
        self.numbers = [self.numbers[index] for index in going]
        self.walks = [self.walks[index] for index in going]
        return emissions

    def keep(self, requests: Sequence[int]) -> None:
        """Go on with some of the requests."""
        self.rows.keep(requests)
        self.drawer.keep(requests)

    @torch.inference_mode()
    def _draw(self, count: int) -> Tensor:
        """The next `count` tokens of every request, (R, count) int64."""
        legal = self.legal()
        places = torch.tensor([walk.grid_positions(count) for walk in self.walks], device=self.device)  # (R, n)
        width = legal.id_range[1] - legal.id_range[0]
        only_images = self.vocab.image_start <= legal.id_range[0] and legal.id_range[1] <= self.vocab.image_stop
        noise_length = chunk_length(len(self.walks), width)
        tokens = []
        for step in range(count):
            if step % noise_length == 0:
                noise = self.drawer.noise(self.drawn, min(noise_length, count - step), legal)  # (R, n', V)
            of_step = None if noise is None else noise[:, step % noise_length, None]
            token = self.drawer.draw(self.rows.hidden()[:, None], legal, of_step)[:, 0]  # (R,)
            place = places[:, step] if only_images else places[:, step] * self.vocab.is_image(token)
            self.rows.feed(token, place)
            self.drawer.count(token)
            self.drawn += 1
            tokens.append(token)
        return torch.stack(tokens, dim=1)
