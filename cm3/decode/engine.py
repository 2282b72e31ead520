"""The generation loop: requests in, answers out, many rows at once.

One request is decoded as S streams (`strategies/`), R requests as R · S rows of one forward (`rows.py`). In every turn the
grammar says which ids are legal and for how many tokens that is settled (`grammar.py`), the head is computed for that
range of ids alone, the strategy joins the streams, and the token is the largest of logits plus keyed noise (`noise.py`).
Rows never influence each other, so a request gets the same answer alone as in any company (up to float rounding).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cm3.core.errors import InputError, UsageError
from cm3.core.protocols import DecodingStrategy
from cm3.decode.grammar import IdRanges, Reason, RowWalk
from cm3.decode.noise import chunk_length, gumbel_noise, picture_keys
from cm3.decode.prompts import Stream
from cm3.decode.records import Generation, Request
from cm3.decode.rows import Rows
from cm3.decode.sampling import Sampling, draw
from cm3.decode.strategies.plain import Plain
from cm3.model import CM3ForCausalLM
from cm3.tokens import Vocab

FORBIDDEN = -1e9  # finite, so that strategies may subtract streams; becomes -inf after they have


@dataclass(frozen=True)
class Emission:
    """Tokens that request number `request` has just got; `reason` when they are its last."""

    request: int
    token_ids: tuple[int, ...]
    reason: Reason | None


class DecodingEngine:
    """Generates with one model. The model is put into evaluation mode and used as it is (device, dtype, adapters)."""

    def __init__(self, model: CM3ForCausalLM, vocab: Vocab) -> None:
        if model.config._attn_implementation not in ("sdpa", "eager"):
            raise UsageError(f"decoding needs the sdpa or eager attention, the model has {model.config._attn_implementation!r}")
        self._model, self._vocab = model.eval(), vocab

    def generate(
        self,
        requests: Sequence[Request],
        strategy: DecodingStrategy | None = None,
        sampling: Sampling | None = None,
        batch_size: int = 64,
    ) -> list[Generation]:
        """The answers to `requests`, in their order; at most `batch_size` of them are decoded at once.

        Raises `InputError` when a prompt and its answer do not fit into the model's context.
        """
        by_length = sorted(range(len(requests)), key=lambda index: self._expected_length(requests[index]))
        answers: list[Generation | None] = [None] * len(requests)
        for start in range(0, len(by_length), batch_size):
            batch = by_length[start : start + batch_size]
            tokens: list[list[int]] = [[] for _ in batch]
            for emission in self.stream([requests[index] for index in batch], strategy, sampling):
                tokens[emission.request].extend(emission.token_ids)
                if emission.reason is not None:
                    ids = np.array(tokens[emission.request], np.int64)
                    answers[batch[emission.request]] = Generation(ids, emission.reason)
        return [answer for answer in answers if answer is not None]

    def stream(
        self,
        requests: Sequence[Request],
        strategy: DecodingStrategy | None = None,
        sampling: Sampling | None = None,
        longest_emission: int = 1 << 30,
    ) -> Iterator[Emission]:
        """Decode `requests` together and give their tokens as they come, at most `longest_emission` at a time."""
        if not requests:
            return
        strategy, sampling = strategy or Plain(), sampling or Sampling()
        streams = [list(strategy.streams(request.prompt)) for request in requests]
        self._require_room(requests, streams)
        flight = _Flight(requests, streams, self._model, self._vocab)
        while flight.walks:
            count = min(longest_emission, min(walk.remaining for walk in flight.walks))
            tokens = flight.draw(count, strategy, sampling)
            yield from flight.advance(tokens)

    def _expected_length(self, request: Request) -> tuple[int, int]:
        return request.answer.max_tokens(self._vocab), len(request.prompt.token_ids)

    def _require_room(self, requests: Sequence[Request], streams: Sequence[Sequence[Stream]]) -> None:
        limit = self._model.config.max_position_embeddings
        for request, of_request in zip(requests, streams):
            prompt, answer = max(len(stream.token_ids) for stream in of_request), request.answer.max_tokens(self._vocab)
            if prompt + answer > limit:
                raise InputError(
                    f"the prompt of {prompt} tokens and an answer of up to {answer} do not fit the model's context of {limit}; "
                    "shorten the prompt, use fewer retrieved documents or a smaller limit"
                )


class _Flight:
    """The unfinished requests of one batch, their walks and their rows."""

    def __init__(
        self, requests: Sequence[Request], streams: Sequence[Sequence[Stream]], model: CM3ForCausalLM, vocab: Vocab
    ) -> None:
        self._model, self._vocab = model, vocab
        self.numbers = list(range(len(requests)))
        self.walks = [RowWalk(request.answer, vocab) for request in requests]
        self._keys = picture_keys([(request.seed, request.picture) for request in requests], model.device)
        self._drawn = 0
        self._legal: dict[IdRanges, Tensor] = {}
        self._streams_per_request = len(streams[0])
        self._rows = Rows(model, streams, max(request.answer.max_tokens(vocab) for request in requests))

    @torch.inference_mode()
    def draw(self, count: int, strategy: DecodingStrategy, sampling: Sampling) -> Tensor:
        """The next `count` tokens of every request, (R, count) int64."""
        id_range, legal = self._legal_ids()
        places = torch.tensor([walk.grid_positions(count) for walk in self.walks], device=self._keys.device)  # (R, n)
        only_images = self._vocab.image_start <= id_range[0] and id_range[1] <= self._vocab.image_stop
        noise_length = chunk_length(len(self.walks), id_range[1] - id_range[0])
        tokens = []
        for step in range(count):
            if step % noise_length == 0 and sampling.temperature > 0:
                length = min(noise_length, count - step)
                noise = gumbel_noise(self._keys, self._drawn, length, id_range)  # (R, n', W)
            logits = self._join(strategy, id_range, legal)  # (R, W)
            of_step = noise[:, step % noise_length] if sampling.temperature > 0 else None
            token = draw(logits, sampling, of_step) + id_range[0]  # (R,)
            place = places[:, step] if only_images else places[:, step] * self._vocab.is_image(token)
            self._rows.feed(token, place)
            self._drawn += 1
            tokens.append(token)
        return torch.stack(tokens, dim=1)

    def advance(self, tokens: Tensor) -> list[Emission]:
        """Let every walk see its tokens (R, n); finished requests leave the batch."""
        emissions = []
        for number, walk, drawn in zip(self.numbers, self.walks, tokens.tolist()):
            walk.advance(drawn)
            emissions.append(Emission(number, tuple(drawn), walk.reason))
        going = [index for index, walk in enumerate(self.walks) if not walk.done]
        if 0 < len(going) < len(self.walks):
            kept = torch.tensor(going, device=self._keys.device)
            self._rows.keep(going)
            self._keys = self._keys[kept]
        self.numbers = [self.numbers[index] for index in going]
        self.walks = [self.walks[index] for index in going]
        return emissions

    def _join(self, strategy: DecodingStrategy, id_range: tuple[int, int], legal: Tensor | None) -> Tensor:
        logits = self._model.project(self._rows.hidden(), id_range).float()  # (R · S, W)
        logits = logits.unflatten(0, (-1, self._streams_per_request))  # (R, S, W)
        if legal is None:
            return strategy.combine(logits)
        joined = strategy.combine(logits.masked_fill(~legal[:, None], FORBIDDEN))
        return joined.masked_fill(~legal, -torch.inf)

    def _legal_ids(self) -> tuple[tuple[int, int], Tensor | None]:
        """The range of ids to compute logits for, and (R, W) bool which of them are legal (None: all of them)."""
        allowed = [walk.allowed for walk in self.walks]
        low, high = min(ranges[0] for row in allowed for ranges in row), max(ranges[1] for row in allowed for ranges in row)
        if all(row == ((low, high),) for row in allowed):
            return (low, high), None
        return (low, high), torch.stack([self._mask_of(row) for row in allowed])[:, low:high]

    def _mask_of(self, ranges: IdRanges) -> Tensor:
        if ranges not in self._legal:
            mask = torch.zeros(self._vocab.size, dtype=torch.bool, device=self._keys.device)
            for start, stop in ranges:
                mask[start:stop] = True
            self._legal[ranges] = mask
        return self._legal[ranges]
