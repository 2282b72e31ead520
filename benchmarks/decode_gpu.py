"""Seconds for a 256² picture of 1,024 tokens with guidance on one GPU, against the limit of its memory and against transformers.

ours     the recorded step; with `CM3_BENCH_COMPILE=1` compiled first
peer     both streams of all pictures as rows of one forward, static cache, all logits: the loop that transformers writes out for
         its Janus model, with its Chameleon class on the same weights
limit    weights of the layers, the head's image rows, and the keys and values of a step, at the bandwidth of a copy in this run

Prompts have 64 tokens in both streams. A step is timed at the begin, the middle and the end of a picture, and the picture is
1,024 of them by the trapezoid rule: milliseconds for each picture of the batch. Weights are random, bfloat16. Gate: recorded and
direct steps draw the same tokens; in float32 (size "tiny") the peer does, too. `CM3_BENCH_SIZES` names sizes, "350M,760M,7B"
on a GPU; "tiny" runs anywhere. `CM3_BENCH_BATCHES` says how many pictures at once ("1,8,64").
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ChameleonForConditionalGeneration, StaticCache

from benchmarks.chameleon_peer import chameleon_config, chameleon_of, random_prompt
from benchmarks.measure import Row, report, time_row
from cm3.core.available_memory import available_memory
from cm3.decode import GREEDY, ImageAnswer, Request
from cm3.decode.captured import NewRecorder, graphs_for
from cm3.decode.compiled import compiled
from cm3.decode.drawing import Manner
from cm3.decode.flight import Flight, Plan
from cm3.decode.memory import bytes_per_token
from cm3.decode.prompts import Stream
from cm3.decode.strategies.guidance import Guidance
from cm3.model import CM3ForCausalLM, create_model
from cm3.tokens import Vocab

SCALE, PROMPT, WARM = 3.0, 64, 4


@dataclass(frozen=True)
class Size:
    """A model and its pictures: width, layers, inner width, ids, codes and grid."""

    width: int
    layers: int
    inner: int
    ids: int = 65536
    codes: int = 8192
    grid: tuple[int, int] = (32, 32)
    dtype: torch.dtype = torch.bfloat16


SIZES = {
    "tiny": Size(64, 2, 128, 512, 64, (4, 8), torch.float32),
    "350M": Size(1024, 24, 2736),
    "760M": Size(1536, 24, 4096),
    "7B": Size(4096, 32, 11008),
}


class Problem:
    """One size and one batch: `pictures` pictures, two rows each."""

    def __init__(self, name: str, model: CM3ForCausalLM, vocab: Vocab, pictures: int) -> None:
        self.title, self.model, self.vocab, self.pictures = f"{name}, {pictures} at once", model, vocab, pictures
        self.device, self.codes = model.device, vocab.num_image_tokens
        self.contexts = [PROMPT, PROMPT + self.codes // 2, PROMPT + self.codes]
        self.steps = min(48, self.codes // 2)

    def streams(self, context: int) -> np.ndarray:
        """Random rows (pictures, 2, T) such that the timed steps have `context` tokens behind them on average."""
        length = context - WARM - self.steps // 2
        generator = np.random.default_rng(context)
        return generator.integers(self.vocab.text_start, self.vocab.text_stop, (self.pictures, 2, length))

    def ours(self, context: int, recorders: NewRecorder | None) -> tuple[float, list[list[int]]]:
        """Seconds of a step, and the tokens."""
        rows = [
            [Stream(np.array(ids), np.zeros(len(ids), np.int64)) for ids in of_picture] for of_picture in self.streams(context)
        ]
        requests = [Request(random_prompt(self.vocab, 3), ImageAnswer(), 0, index) for index in range(self.pictures)]
        plan = Plan(requests, [Manner(Guidance(SCALE), GREEDY)] * self.pictures, rows, [(0, 1)] * self.pictures)
        flight = Flight(plan, self.model, self.vocab, 0, recorders)
        first = [emission.token_ids for emission in flight.turn(WARM)]
        seconds, then = self._timed(lambda: [emission.token_ids for emission in flight.turn(self.steps)])
        return seconds, [[*before, *behind] for before, behind in zip(first, then)]

    @torch.inference_mode()
    def theirs(self, peer: ChameleonForConditionalGeneration, context: int) -> tuple[float, list[list[int]]]:
        """The same by the peer."""
        ids = torch.from_numpy(self.streams(context)).to(self.device)
        given = ids.transpose(0, 1).flatten(0, 1)  # (2 · pictures, T), conditional rows first
        cache = StaticCache(config=peer.config, max_cache_len=given.shape[1] + WARM + self.steps)
        outside = torch.ones(self.model.config.vocab_size, dtype=torch.bool, device=self.device)
        outside[self.vocab.image_start : self.vocab.image_stop] = False
        tokens: list[torch.Tensor] = []

        def draw(given: torch.Tensor, count: int) -> torch.Tensor:
            for _ in range(count):
                logits = peer(input_ids=given, past_key_values=cache, logits_to_keep=1, use_cache=True).logits[:, -1].float()
                conditional, without = logits.chunk(2)
                token = (without + SCALE * (conditional - without)).masked_fill(outside, -torch.inf).argmax(dim=-1)
                tokens.append(token)
                given = token.repeat(2)[:, None]
            return given

        given = draw(given, WARM)
        seconds, _ = self._timed(lambda: draw(given, self.steps))
        return seconds, torch.stack(tokens, dim=1).tolist()

    def _timed(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds of each of the timed steps, and what `run` returns."""
        self._wait()
        started = time.perf_counter()
        made = run()
        self._wait()
        return (time.perf_counter() - started) / self.steps, made

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def needed(self) -> int:
        """Bytes of keys and values of the longest prompt, twice while it is copied, and of a whole picture behind it."""
        tokens = 2 * self.pictures * (2 * self.contexts[-1] + self.codes)
        return tokens * bytes_per_token(self.model.config, self.model.dtype)

    def least(self, context: int, bandwidth: float) -> float:
        """Seconds of a step that does nothing but read what it must."""
        config, layers = self.model.config, self.model.model.layers
        weights = sum(parameter.nbytes for parameter in layers.parameters())
        head = (self.vocab.image_stop - self.vocab.image_start) * config.hidden_size * self.model.dtype.itemsize
        return (weights + head + 2 * self.pictures * context * bytes_per_token(config, self.model.dtype)) / bandwidth

    def picture(self, steps: Sequence[float]) -> float:
        """Seconds of each picture, from those of a step at its begin, middle and end."""
        begin, middle, end = steps
        return self.codes * (begin + 2 * middle + end) / 4 / self.pictures


def bytes_per_second(device: torch.device) -> float:
    """What the device reads and writes when it copies a GiB (64 MiB on a CPU), best of ten."""
    source = torch.ones(1 << (28 if device.type == "cuda" else 24), device=device)
    target, times = torch.empty_like(source), []
    for _ in range(10):
        started = time.perf_counter()
        target.copy_(source)
        target[0].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(times)


def measured(problem: Problem, peer: ChameleonForConditionalGeneration, bandwidth: float) -> Row:
    """One row; recorded, direct and peer run in turns at each context."""
    recorders = graphs_for(problem.model)
    recorders = compiled(recorders) if os.environ.get("CM3_BENCH_COMPILE") else recorders
    ours, theirs, gate = [], [], "ok"
    for context in problem.contexts:
        problem.ours(context, recorders)  # whatever is compiled is compiled
        seconds, tokens = problem.ours(context, recorders)
        ours.append(seconds)
        gate = gate if tokens == problem.ours(context, None)[1] else "recorded steps draw other tokens"
        seconds, others = problem.theirs(peer, context)
        theirs.append(seconds)
        gate = "the greedy tokens differ" if problem.model.dtype == torch.float32 and tokens != others else gate
    least = problem.picture([problem.least(context, bandwidth) for context in problem.contexts])
    both = problem.picture(ours), problem.picture(theirs)
    return time_row(f"{problem.codes} codes with guidance, {problem.title}", both, gate, round(least / both[0], 3))


def rows() -> Iterator[Row]:
    """Every size and batch that fits."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = os.environ.get("CM3_BENCH_SIZES", "350M,760M,7B" if device.type == "cuda" else "")
    bandwidth = bytes_per_second(device)
    for name in filter(None, sizes.split(",")):
        size = SIZES[name]
        vocab = Vocab(size.ids - size.codes - 21, size.codes, size.grid)
        config = chameleon_config(vocab, size.width, size.layers, size.inner, 4096)
        with torch.device(device):
            model = create_model(config, 0, size.dtype).eval()
            peer = chameleon_of(model).to(size.dtype)
        for pictures in map(int, os.environ.get("CM3_BENCH_BATCHES", "1,8,64").split(",")):
            problem = Problem(name, model, vocab, pictures)
            if problem.needed() > available_memory(device):
                print(f"{problem.title}: keys and values do not fit", file=sys.stderr)
            else:
                yield measured(problem, peer, bandwidth)
        del model, peer, problem
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    report(rows, __doc__ or "")
