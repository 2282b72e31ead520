"""Data work of a training step: CM3 masking, packing and loading from memory-mapped shards, on one core.

Documents of a caption and a picture of 1,024 codes, rows of 4,096 tokens, the CM3 objective. The peer is what the step
consumes: the 350M preset at half of an H100's peak trains 175,000 tokens per second. `ratio` says how many such GPUs one core
feeds; the goal is twenty from one machine, and `cores for twenty` how many cores that takes. Gate: every sequence of a
batch restores to one of the documents, and no token is lost.

Then what going on costs after a million documents: the rows before are counted from lengths. The peer packs them. Gate: as many.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, report
from cm3.core.seeding import numpy_generator
from cm3.sequences import LoaderConfig, ObjectiveConfig, SequenceLoader, TokenShards, restore, write_shards
from cm3.sequences.packing import pack
from cm3.tokens import TokenizedDocument, Vocab, assemble

GPU_TOKENS_PER_S = 175_000
DOCUMENTS, SECONDS = 4_000, 6.0
VOCAB = Vocab(text_size=56_320, codebook_size=8_192, grid_shape=(32, 32))


def documents() -> Iterator[TokenizedDocument]:
    """Pairs with captions of 8 to 63 tokens."""
    rng = numpy_generator(0, "benchmark")
    for index in range(DOCUMENTS):
        text = rng.integers(VOCAB.text_start, VOCAB.text_stop, rng.integers(8, 64))
        picture = VOCAB.image_ids(rng.integers(0, VOCAB.codebook_size, VOCAB.num_image_tokens))
        yield assemble([("text", text), ("image", picture)], VOCAB, str(index))


def gate(loader: SequenceLoader, shards: TokenShards) -> str:
    """Whether the sequences of two batches restore to documents of the shards."""
    known = {shards[index].token_ids.tobytes() for index in range(len(shards))}
    for row in range(2 * loader.config.batch_size):
        for sequence in loader.documents(row):
            if restore(sequence.token_ids, VOCAB).tobytes() not in known:
                return f"a sequence of row {row} is no document"
    return "ok"


def tokens_per_s(loader: SequenceLoader) -> float:
    """Tokens of documents that one core makes batches of in a second, over a few seconds."""
    loader.batch(0)
    started, step, tokens = time.process_time(), 1, 0
    while time.process_time() - started < SECONDS:
        tokens += loader.batch(step).num_tokens
        step += 1
    return tokens / (time.process_time() - started)


def going_on(loader: SequenceLoader) -> Row:
    """Seconds to find the place after a million documents, beside packing them."""
    config, stream = loader.config, loader.plan.streams[0]
    windows = 1_000_000 // config.window
    started = time.process_time()
    counted = loader.plan.first_row(windows)
    ours, started = time.process_time() - started, time.process_time()
    taken = (stream.items(number * config.window, (number + 1) * config.window) for number in range(windows))
    packed = sum(len(pack(items[:, 3], config.row_length)) for items in taken)
    peer = time.process_time() - started
    figures = {"ours": round(ours, 2), "peer": round(peer, 2), "ratio": round(peer / ours, 2)}
    row = Row(row="", ours=0, peer=0, ratio=0, unit="s", limit_fraction=None, gate="ok" if counted == packed else "another count")
    return row | {"row": f"{config.objective.name}: going on after a million documents", **figures}


def rows() -> Iterator[Row]:
    """Two objectives, how many cores feed twenty GPUs, and going on."""
    with tempfile.TemporaryDirectory() as folder:
        write_shards(documents(), Path(folder) / "tokens", VOCAB)
        shards = TokenShards(Path(folder) / "tokens", VOCAB)
        for name in ("cm3", "causal"):
            config = LoaderConfig(row_length=4096, batch_size=8, objective=ObjectiveConfig(name=name))
            loader = SequenceLoader(shards, VOCAB, config, seed=0)
            checked, speed = gate(loader, shards), tokens_per_s(loader)
            row = Row(row="", ours=0, peer=0, ratio=0, unit="", limit_fraction=None, gate=checked)
            figures = {"ours": round(speed), "peer": GPU_TOKENS_PER_S, "ratio": round(speed / GPU_TOKENS_PER_S, 2)}
            yield row | {"row": f"{name}: one core / one H100 (350M)", "unit": "tokens/s", **figures}
            cores = math.ceil(20 * GPU_TOKENS_PER_S / speed)
            yield row | {"row": f"{name}: cores for twenty H100", "unit": "cores", "ours": cores, "peer": 20, "ratio": 20 / cores}
            yield going_on(SequenceLoader(shards, VOCAB, config, seed=0))


if __name__ == "__main__":
    report(rows, __doc__ or "")
