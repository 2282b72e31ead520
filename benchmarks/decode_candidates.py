"""Best of 8 with two retrieved documents: prompt and documents computed once and shared, against decoding 8 whole prompts.

The peer is transformers' Chameleon class on the same weights, in the loop of its Janus model: 8 candidates are 16 rows, each with
the whole prompt. Gate: the same greedy tokens. The second row compares our own prefill of 8 candidates with that of one: ratio 1
is free, 0.125 would be paying for each. Gate: at most 1.1 times the time of one, by the median of many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.chameleon_peer import OnlyImages, chameleon_config, chameleon_of, random_prompt, two_stream_loop
from benchmarks.measure import Row, interleaved, report, time_row
from cm3.decode import GREEDY, DecodingEngine, ImageAnswer, Prompt, Request
from cm3.decode.rows import Rows
from cm3.decode.strategies.guidance import Guidance
from cm3.model import create_model
from cm3.tokens import Span, Vocab

CANDIDATES, DOCUMENTS, SCALE = 8, 2, 3.0
REPEATS, PREFILLS = 3, 31
MOST_OF_ONE = 1.1


def with_documents(prompt: Prompt, count: int) -> Prompt:
    """`prompt` behind `count` documents of 20 text tokens and a picture."""
    vocab, rng = prompt.vocab, np.random.default_rng(1)
    ids, places, spans = [vocab.bos_id], [0], []
    for _ in range(count):
        text = rng.integers(vocab.text_start, vocab.text_stop, 20)
        codes = rng.integers(vocab.image_start, vocab.image_stop, vocab.num_image_tokens)
        for kind, tokens in (("text", text), ("image", codes)):
            spans.append(Span(kind, len(ids), len(ids) + len(tokens)))
            ids += [*tokens.tolist(), vocab.break_id]
            places += [*(range(1, len(tokens) + 1) if kind == "image" else [0] * len(tokens)), 0]
    shift = len(ids) - 1
    spans += [Span(span.kind, span.start + shift, span.stop + shift) for span in prompt.spans]
    token_ids, grid = np.array([*ids, *prompt.token_ids[1:]]), np.array([*places, *prompt.grid_positions[1:]])
    return replace(prompt, token_ids=token_ids, grid_positions=grid, spans=tuple(spans), context_stop=len(ids))


def rows() -> Iterator[Row]:
    """Whole drawing against the peer, then prefill against one candidate."""
    vocab = Vocab(8192 - 1024 - 21, 1024, (10, 10))
    model = create_model(chameleon_config(vocab, 256, 6, 704), 0)
    peer, only, engine = chameleon_of(model), OnlyImages(vocab), DecodingEngine(model, vocab)
    prompt = with_documents(random_prompt(vocab, 20), DOCUMENTS)
    requests = [Request(prompt, ImageAnswer(), 0, index) for index in range(CANDIDATES)]

    def ours() -> list[list[int]]:
        return [answer.token_ids.tolist() for answer in engine.generate(requests, Guidance(SCALE), GREEDY)]

    def theirs() -> list[list[int]]:
        return two_stream_loop(peer, prompt, SCALE, only, CANDIDATES)

    gate = "ok" if ours() == theirs() else "the greedy tokens differ"
    title = f"best of {CANDIDATES}, {DOCUMENTS} documents, prompt of {len(prompt.token_ids)} tokens"
    yield time_row(title, interleaved(ours, theirs, REPEATS), gate)
    streams = Guidance(SCALE).streams(prompt)
    all_rows, one = [streams] * CANDIDATES, [streams]
    seconds = interleaved(lambda: Rows(model, all_rows, 100), lambda: Rows(model, one, 100), PREFILLS)
    free = seconds[0] <= MOST_OF_ONE * seconds[1]
    gate = "ok" if free else f"the prefill of {CANDIDATES} takes more than {MOST_OF_ONE} times that of one"
    yield time_row(f"prefill of {CANDIDATES} candidates against that of one", seconds, gate)


if __name__ == "__main__":
    report(rows, __doc__ or "")
