"""The generation loop: requests in, answers out, many rows at once.

One request is decoded as S streams (`strategies/`), the streams of all requests of a batch are the rows of one forward
(`rows.py`). In every turn the grammar says which ids are legal and for how many tokens that is settled (`grammar.py`), the
head is computed for that range of ids alone, the strategy joins the streams, and the token is the largest of logits plus
keyed noise (`drawing.py`, `noise.py`). `flight.py` draws one token at a time, `jacobi.py` several, with the same result.
Rows never influence each other, so a request gets the same answer alone as in any company (up to float rounding).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from cm3.core.available_memory import available_memory
from cm3.core.counts import require_positive
from cm3.core.errors import InputError, UsageError
from cm3.core.protocols import DecodingStrategy
from cm3.decode.captured import graphs_for
from cm3.decode.compiled import compiled, require_compilable
from cm3.decode.flight import Emission, Flight, Plan
from cm3.decode.jacobi import JacobiFlight
from cm3.decode.memory import USABLE, prefill_bytes, request_bytes, require_memory
from cm3.decode.records import Generation, Request
from cm3.decode.sampling import Sampling
from cm3.decode.strategies.plain import Plain
from cm3.model import CM3ForCausalLM
from cm3.tokens import Vocab

__all__ = ["DecodingEngine", "Emission"]


class DecodingEngine:
    """Generates with one model. The model is put into evaluation mode and used as it is (device, dtype, adapters).

    compile_steps: these go through `torch.compile`, which takes long at first. Raises `UsageError` for an attention that cannot
    decode, and for adapters or hooks in a model to compile.
    """

    def __init__(self, model: CM3ForCausalLM, vocab: Vocab, compile_steps: bool = False) -> None:
        if model.config._attn_implementation not in ("sdpa", "eager"):
            raise UsageError(f"decoding needs the sdpa or eager attention, the model has {model.config._attn_implementation!r}")
        if compile_steps:
            require_compilable(model)
        self._model, self._vocab, self._compiled = model.eval(), vocab, compile_steps

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
        require_positive(batch_size=batch_size, window=window)
        strategy, sampling, window = strategy or Plain(), sampling or Sampling(), self._useful(window)
        by_length = sorted(range(len(requests)), key=lambda index: self._expected_length(requests[index]))
        answers: list[Generation | None] = [None] * len(requests)
        while by_length:
            plan = Plan.of([requests[index] for index in by_length[:batch_size]], strategy, sampling)
            fitting = self._fitting(plan, window)
            batch, by_length = by_length[:fitting], by_length[fitting:]
            tokens: list[list[int]] = [[] for _ in batch]
            for emission in self._fly(plan.first(fitting), 1 << 30, window):
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
        Raises `InputError` when a prompt and its answer do not fit into the model's context, `UsageError` when memory does
        not hold all requests together.
        """
        require_positive(window=window)
        if not requests:
            return
        plan, window = Plan.of(requests, strategy or Plain(), sampling or Sampling()), self._useful(window)
        needed, free = sum(self._needed(plan, window)), available_memory(self._model.device)
        remedy = _remedy("ask for fewer or shorter ones at a time", window)
        require_memory(needed, free, "the keys and values of all answers", remedy)
        yield from self._fly(plan, longest_emission, window)

    def _fly(self, plan: Plan, longest_emission: int, window: int) -> Iterator[Emission]:
        self._require_room(plan)
        model, vocab, graphs = self._model, self._vocab, graphs_for(self._model)
        recorders = compiled(graphs) if self._compiled else graphs
        single = window == 1
        flight = Flight(plan, model, vocab, 0, recorders) if single else JacobiFlight(plan, model, vocab, window, recorders)
        while flight.walks:
            yield from flight.turn(longest_emission)

    def _useful(self, window: int) -> int:
        return min(window, self._vocab.num_image_tokens)  # no more can be tried at once

    def _expected_length(self, request: Request) -> tuple[int, int]:
        return request.answer.max_tokens(self._vocab), len(request.prompt.token_ids)

    def _needed(self, plan: Plan, window: int) -> list[int]:
        """Bytes that each request holds in the company of the others, the first with what the prefill of all needs.

        Rows are padded to the longest prompt and answer.
        """
        answers, prompts = zip(*(self._expected_length(request) for request in plan.requests))
        config, dtype, streams = self._model.config, self._model.dtype, [len(streams) for streams in plan.streams]
        first, *others = (request_bytes(config, dtype, count, max(prompts), max(answers), window) for count in streams)
        return [first + prefill_bytes(config, dtype, sum(streams), max(prompts)), *others]

    def _fitting(self, plan: Plan, window: int) -> int:
        """How many of the first requests memory holds at once, at least 1. Raises `UsageError` when it holds none."""
        free, needed = available_memory(self._model.device), self._needed(plan, window)
        require_memory(needed[0], free, "the keys and values of one answer", _remedy("shorten the prompt or the answer", window))
        totals = accumulate(needed)
        return max(1, sum(total <= USABLE * free for total in totals))

    def _require_room(self, plan: Plan) -> None:
        limit = self._model.config.max_position_embeddings
        for request, streams in zip(plan.requests, plan.streams):
            prompt, answer = max(len(stream.token_ids) for stream in streams), request.answer.max_tokens(self._vocab)
            if prompt + answer > limit:
                fewer = "use fewer retrieved documents" if request.prompt.context_stop > 1 else "shorten the prompt"
                raise InputError(
                    f"the prompt of {prompt} tokens and an answer of up to {answer} do not fit the model's context of {limit}; "
                    f"{fewer} or ask for a shorter answer"
                )


def _remedy(remedy: str, window: int) -> str:
    return f"{remedy}, or try fewer tokens at once (window)" if window > 1 else remedy
