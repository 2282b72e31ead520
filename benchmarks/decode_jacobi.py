"""Several tokens per forward on a trained model: how many forwards fewer, and how much time, for the very same pictures.

ours: Jacobi decoding with a window; peer: one token at a time. Gate: equal tokens for every prompt and seed. The model is that of
`CM3_BENCH_MODEL`; without one there is nothing to measure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.measure import Row, interleaved, report, time_row
from benchmarks.trained_model import held_out_pairs, trained_pipeline
from cm3.core.protocols import DecodingStrategy
from cm3.decode import ImageAnswer, Request, Sampling, continuation
from cm3.decode.flight import Plan
from cm3.decode.jacobi import JacobiFlight
from cm3.decode.strategies.contrastive import Contrastive
from cm3.decode.strategies.guidance import Guidance
from cm3.decode.strategies.mixed import Mixed
from cm3.decode.strategies.plain import Plain
from cm3.pipeline import CM3Pipeline
from cm3.tokens.turns import encode_prompt

SEEDS, REPEATS, WINDOWS = 8, 5, (8, 16, 36)
SAMPLING = Sampling(0.7, top_p=0.9)
STRATEGIES: dict[str, DecodingStrategy] = {
    "plain": Plain(),
    "guidance": Guidance(),
    "CD-K": Contrastive(k=1, alpha=0.5),  # k = 3 at scale 1 draws junk on this model, see docs/decoding.md
    "mixed": Mixed(scale=1.5, k=1, alpha=0.5),
}


def passes(pipe: CM3Pipeline, request: Request, strategy: DecodingStrategy, window: int) -> int:
    """Forwards behind the prompt that one picture takes."""
    flight = JacobiFlight(Plan.of([request], strategy, SAMPLING), pipe.model, pipe.vocab, window)
    while flight.walks:
        flight.turn(1 << 30)
    return flight.passes


def tokens(pipe: CM3Pipeline, requests: Sequence[Request], strategy: DecodingStrategy, window: int) -> list[list[int]]:
    """The codes of all requests, each decoded alone."""
    answers = [pipe.engine.generate([request], strategy, SAMPLING, window=window)[0] for request in requests]
    return [answer.token_ids.tolist() for answer in answers]


def rows() -> Iterator[Row]:
    """Every strategy, every window: forwards per picture, then milliseconds per picture."""
    pipe = trained_pipeline()
    if pipe is None:
        return
    prompts = [
        continuation(encode_prompt(pipe.tasks["text_to_image"].prompt(document.text), pipe.tokenizer), pipe.vocab)
        for document in held_out_pairs(SEEDS)
    ]
    requests = [Request(prompt, ImageAnswer(), seed, seed) for seed, prompt in enumerate(prompts)]
    single = pipe.vocab.num_image_tokens - 1  # the first token comes with the prompt
    for name, strategy in STRATEGIES.items():
        expected = tokens(pipe, requests, strategy, 1)
        for window in WINDOWS:
            gate = "ok" if tokens(pipe, requests, strategy, window) == expected else "the tokens differ"
            mean = sum(passes(pipe, request, strategy, window) for request in requests) / len(requests)
            title = f"forwards per picture, {name}, window {window}"
            yield Row(row=title, ours=mean, peer=single, ratio=single / mean, unit="forwards", limit_fraction=None, gate=gate)
        one = requests[:1]
        seconds = interleaved(lambda: tokens(pipe, one, strategy, 16), lambda: tokens(pipe, one, strategy, 1), REPEATS)  # noqa: B023
        yield time_row(f"one picture, {name}, window 16 against 1", seconds, "ok")


if __name__ == "__main__":
    report(rows, __doc__ or "")
