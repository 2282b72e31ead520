"""One picture with guidance on a CPU, batch 1: our loop against transformers on the same weights (its Chameleon class).

    generate(guidance_scale)     what transformers offers: two forwards per token, all logits
    two rows, static cache       the loop of its Janus model: both streams in one forward, all logits
    LlamaGen's generate          its own loop and transformer from the checkout in `CM3_BENCH_LLAMAGEN`, on a plainer model

The weights are random, so only one-token loops are measured. Gate: the same greedy tokens. limit_fraction: the bytes a step
must read (backbone and the head's image rows) at the copy bandwidth measured in the same run. `CM3_BENCH_SIZES` names sizes
to run ("25M" by default; "25M,100M,350M" for all).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.chameleon_peer import OnlyImages, chameleon_config, chameleon_of, guided_generate, random_prompt, two_stream_loop
from benchmarks.llamagen_peer import class_prompt, llamagen_checkout, llamagen_loop
from benchmarks.measure import Row, interleaved, report, time_row
from cm3.decode import GREEDY, DecodingEngine, ImageAnswer, Request
from cm3.decode.strategies.guidance import Guidance
from cm3.model import create_model
from cm3.tokens import Vocab

SCALE, GRID, CODES, IDS = 3.0, (4, 6), 8192, 65536
SIZES = {"25M": (512, 8, 1408), "100M": (768, 14, 2048), "350M": (1024, 24, 4096)}  # width, layers, inner width
LLAMAGEN_SIZES = ("25M", "100M")  # its inner width follows from the width; that of 350M is another
REPEATS = 5


class Problem:
    """One prompt of 30 text tokens and a model of one size in both libraries."""

    def __init__(self, width: int, layers: int, inner: int) -> None:
        self.vocab = Vocab(IDS - CODES - 21, CODES, GRID)
        self.model = create_model(chameleon_config(self.vocab, width, layers, inner), 0)
        self.peer, self.only = chameleon_of(self.model), OnlyImages(self.vocab)
        self.prompt, self.engine = random_prompt(self.vocab, 30), DecodingEngine(self.model, self.vocab)

    def ours(self) -> list[int]:
        [answer] = self.engine.generate([Request(self.prompt, ImageAnswer())], Guidance(SCALE), GREEDY)
        return answer.token_ids.tolist()

    def generate(self) -> list[int]:
        return guided_generate(self.peer, self.prompt, SCALE, self.only)

    def two_rows(self) -> list[int]:
        [tokens] = two_stream_loop(self.peer, self.prompt, SCALE, self.only)
        return tokens


def bytes_per_second() -> float:
    """What one thread reads and writes when it copies 128 MiB, best of five."""
    source, target = torch.ones(1 << 25), torch.empty(1 << 25)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(times)


def rows() -> Iterator[Row]:
    """Every size against both loops."""
    bandwidth = bytes_per_second()
    for name in os.environ.get("CM3_BENCH_SIZES", "25M").split(","):
        shape = SIZES[name]
        problem = Problem(*shape)
        expected = problem.ours()
        backbone = sum(parameter.nbytes for parameter in problem.model.model.layers.parameters())
        least = (backbone + CODES * shape[0] * 4) / bandwidth * problem.vocab.num_image_tokens
        for peer, label in ((problem.generate, "generate(guidance_scale)"), (problem.two_rows, "two rows, static cache")):
            gate = "ok" if peer() == expected else "the greedy tokens differ"
            seconds = interleaved(problem.ours, peer, REPEATS)
            yield time_row(
                f"{problem.vocab.num_image_tokens} codes, {name}, {label}", seconds, gate, round(least / seconds[0], 3)
            )

        if (checkout := llamagen_checkout()) is not None and name in LLAMAGEN_SIZES:
            yield llamagen_row(checkout, name)


def llamagen_row(checkout: Path, name: str) -> Row:
    """The same shape without norms of the heads, which LlamaGen has not, after a prompt of one token."""
    vocab = Vocab(IDS - CODES - 21, CODES, GRID)
    config = chameleon_config(vocab, *SIZES[name])
    config.qk_norm = "none"
    model = create_model(config, 0)
    request, engine = Request(class_prompt(vocab), ImageAnswer()), DecodingEngine(model, vocab)
    peer = llamagen_loop(checkout, model, vocab, SCALE)

    def ours() -> list[int]:
        return engine.generate([request], Guidance(SCALE), GREEDY)[0].token_ids.tolist()

    gate = "ok" if ours() == peer() else "the greedy tokens differ"
    return time_row(f"{vocab.num_image_tokens} codes, {name}, LlamaGen's generate", interleaved(ours, peer, REPEATS), gate)


if __name__ == "__main__":
    report(rows, __doc__ or "")
