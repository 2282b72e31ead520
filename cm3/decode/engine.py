"""The generation loop: requests in, answers out, many rows at once.

One request is decoded as S streams (`strategies/`), the streams of all requests of a batch are the rows of one forward
(`rows.py`). In every turn the grammar says which ids are legal and for how many tokens that is settled (`grammar.py`), the
head is computed for that range of ids alone, the strategy joins the streams, and the token is the largest of logits plus
keyed noise (`drawing.py`, `noise.py`). `flight.py` draws one token at a time, `jacobi.py` several, with the same result.
Rows never influence each other, so a request gets the same answer alone as in any company (up to float rounding).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from cm3.core.counts import require_positive
from cm3.core.errors import InputError, UsageError
from cm3.core.protocols import DecodingStrategy
from cm3.decode.flight import Emission, Flight, Plan
from cm3.decode.jacobi import JacobiFlight
from cm3.decode.memory import USABLE, free_bytes, request_bytes, require_memory
from cm3.decode.records import Generation, Request
from cm3.decode.sampling import Sampling
from cm3.decode.strategies.plain import Plain
from cm3.model import CM3ForCausalLM
from cm3.tokens import Vocab

__all__ = ["DecodingEngine", "Emission"]


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
        window: int = 1,
    ) -> list[Generation]:
        """The answers to `requests`, in their order; at most `batch_size` of them, and no more than memory holds, at once.

        strategy, sampling: of the requests that bring none of their own; window: see `stream`.
        Raises `InputError` when a prompt and its answer do not fit into the model's context, `UsageError` when memory does
        not hold even one, or for a batch size below 1.
        """
        require_positive(batch_size=batch_size)
        by_length = sorted(range(len(requests)), key=lambda index: self._expected_length(requests[index]))
        answers: list[Generation | None] = [None] * len(requests)
        while by_length:
            fitting = self._fitting([requests[index] for index in by_length[:batch_size]], strategy, sampling)
            batch, by_length = by_length[:fitting], by_length[fitting:]
            tokens: list[list[int]] = [[] for _ in batch]
            for emission in self.stream([requests[index] for index in batch], strategy, sampling, window=window):
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
        window: int = 1,
    ) -> Iterator[Emission]:
        """Decode `requests` together and give their tokens as they come, at most `longest_emission` at a time.

        window: how many tokens of a picture are tried in one forward (`jacobi.py`); the tokens are the same for any number.
        """
        require_positive(window=window)
        if not requests:
            return
        plan = Plan.of(requests, strategy or Plain(), sampling or Sampling())
        self._require_room(plan)
        window = min(window, self._vocab.num_image_tokens)  # no more can be tried at once
        single = window == 1
        flight = Flight(plan, self._model, self._vocab) if single else JacobiFlight(plan, self._model, self._vocab, window)
        while flight.walks:
            yield from flight.turn(longest_emission)

    def _expected_length(self, request: Request) -> tuple[int, int]:
        return request.answer.max_tokens(self._vocab), len(request.prompt.token_ids)

    def _fitting(self, requests: Sequence[Request], strategy: DecodingStrategy | None, sampling: Sampling | None) -> int:
        """How many of the first requests memory holds at once, at least 1. Raises `UsageError` when it holds none."""
        free = free_bytes(self._model.device)
        plan = Plan.of(requests, strategy or Plain(), sampling or Sampling())
        most = max(sum(self._expected_length(request)) for request in requests)  # rows are padded to the longest
        needed = [request_bytes(self._model.config, self._model.dtype, len(streams), most) for streams in plan.streams]
        require_memory(needed[0], free, f"the keys and values of one answer ({most} tokens)", "shorten the prompt or the answer")
        total = 0
        for count, of_one in enumerate(needed):
            total += of_one
            if free is not None and count and total > USABLE * free:
                return count
        return len(requests)

    def _require_room(self, plan: Plan) -> None:
        limit = self._model.config.max_position_embeddings
        for request, streams in zip(plan.requests, plan.streams):
            prompt, answer = max(len(stream.token_ids) for stream in streams), request.answer.max_tokens(self._vocab)
            if prompt + answer > limit:
                raise InputError(
                    f"the prompt of {prompt} tokens and an answer of up to {answer} do not fit the model's context of {limit}; "
                    "shorten the prompt, use fewer retrieved documents or a smaller limit"
                )
