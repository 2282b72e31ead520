"""A training step against transformers' Trainer: the same weights, tokens, optimizer and precision on one thread.

Ours packs documents into rows, attends a document at a time, projects only rows that count, and computes the loss in chunks.
The peer is `Trainer` with a `LlamaForCausalLM` of the same sizes, once on the same packed rows (positions restart, from which
transformers makes the same mask), once on the same documents padded to the longest of each batch. Time is that of a whole step,
from one fetch of data to the next, forward, backward, clipping and AdamW included; useful tokens are those of
documents. Gate: loss equal to 1e-5, gradients to 1e-4.

Three shapes: `cm3leon-350m` reduced to a quarter in every direction (width, row, picture and caption; fewer layers, a vocabulary
that leaves the head its share), so that attention, blocks and head take the shares of a step that they take at full size, with
none to two retrieved documents before each; the same with pictures in every second document alone, as in a mixture of texts and
pairs; and short documents with a large vocabulary, where most of a step is the product with the vocabulary, which both do alike.
`spread`: the smallest and the largest ratio of a round, of which ratio is that of all.

Then what checkpoints cost: the mean time of our step with one after every second step, written at once or from a copy while
training goes on, beside no checkpoints. Gate: the last one holds the weights.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.utils import logging

from benchmarks.measure import Row, peak_mib, report
from cm3.core.seeding import numpy_generator
from cm3.model.presets import create_model, preset
from cm3.pretrain.attention import use_attention
from cm3.pretrain.objective import LossConfig, TokenObjective
from cm3.pretrain.task import TokenTask
from cm3.sequences import Batch, LoaderConfig, ObjectiveConfig, SequenceLoader
from cm3.tokens import TokenizedDocument, Vocab, assemble
from cm3.train.config import TrainConfig
from cm3.train.loop import train
from cm3.train.tensor_files import read_tensors

STEPS, ROUNDS = 4, 6


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of its rows; texts have from `texts[0]` to `texts[1]` tokens, one in `every` has a picture, and
    up to `neighbors` others like it stand before a document."""

    name: str
    width: int
    layers: int
    row: int
    vocab: Vocab
    texts: tuple[int, int]
    every: int
    neighbors: int = 0
    rows: int = 2

    def corpus(self) -> list[TokenizedDocument]:
        """400 documents."""
        rng, vocab, (shortest, longest) = numpy_generator(0, "benchmark"), self.vocab, self.texts
        made = []
        for index in range(400):
            segments = []
            for part in range(1 + int(rng.integers(self.neighbors + 1))):
                length = int(shortest * (longest / shortest) ** rng.random())
                segments.append(("text", rng.integers(vocab.text_start, vocab.text_stop, length)))
                if (index + part) % self.every == self.every - 1:
                    segments.append(("image", vocab.image_ids(rng.integers(0, vocab.codebook_size, vocab.num_image_tokens))))
            made.append(assemble(segments, vocab, str(index)))
        return made

    def loader(self) -> SequenceLoader:
        how = LoaderConfig(row_length=self.row, batch_size=self.rows, objective=ObjectiveConfig(name="causal"))
        return SequenceLoader(self.corpus(), self.vocab, how, 0)

    def models(self) -> tuple[TokenObjective, LlamaForCausalLM]:
        """Ours and a Llama with the same weights."""
        sizes = {"vocab_size": self.vocab.size, "hidden_size": self.width, "num_hidden_layers": self.layers}
        rest = {"num_attention_heads": self.width // 64, "max_position_embeddings": self.row, "tie_word_embeddings": True}
        shape = {**sizes, **rest, "intermediate_size": 4 * self.width}
        config = preset("tiny", **shape, norm="rmsnorm", qk_norm="none", norm_eps=1e-6, grid_embedding=False)
        ours = create_model(config, 0)
        use_attention(ours, "auto", train_config())
        llama = LlamaForCausalLM(
            LlamaConfig(**shape, rms_norm_eps=1e-6, attn_implementation="sdpa", pad_token_id=self.vocab.pad_id)
        )
        llama.load_state_dict(ours.state_dict())
        return TokenObjective(ours, self.vocab, LossConfig()), llama


QUARTER = Shape(
    "cm3leon-350m at a quarter",
    width=256,
    layers=6,
    row=1024,
    vocab=Vocab(text_size=2_000, codebook_size=2_048, grid_shape=(16, 16)),
    texts=(8, 32),
    every=1,
    neighbors=2,
)
MIXED = replace(QUARTER, name="the same, texts and pairs", every=2)
SHORT = Shape(
    "short documents, large vocabulary",
    width=192,
    layers=4,
    row=512,
    vocab=Vocab(text_size=15_000, codebook_size=1_300, grid_shape=(6, 6)),
    texts=(8, 200),
    every=2,
)


class Timed:
    """Remembers when data was fetched; the time of a step is that between two fetches."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def tick(self) -> None:
        self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of every step but the first, which warms up, and the last, whose end nobody sees."""
        return [later - earlier for earlier, later in zip(self.times[1:], self.times[2:])]


class TimedTask(TokenTask):
    """Our task, remembering when its data is fetched."""

    def __init__(self, objective: TokenObjective, loader: SequenceLoader, batches: list[Batch]) -> None:
        super().__init__(objective, loader)
        self.batches, self.timed = batches, Timed()

    def batch(self, step: int, shard: Any) -> Batch:
        self.timed.tick()
        return self.batches[step % len(self.batches)]


def train_config(**changes: Any) -> TrainConfig:
    how = {"device": "cpu", "precision": "fp32", "schedule": "constant", "learning_rate": 1e-4}
    values = {"steps": STEPS + 2, "tensorboard": False, "checkpoint_every": 0, **how, **changes}
    return TrainConfig.model_validate(values)


class TimedData(torch.utils.data.Dataset):
    """Whole batches, handed over one at a time."""

    def __init__(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches, self.timed = batches, Timed()

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.timed.tick()
        return self.batches[index % len(self.batches)]


def packed_for_llama(batch: Batch) -> dict[str, Tensor]:
    """The same rows as transformers takes them: labels shifted by the model itself, -100 where nothing counts."""
    labels = torch.full_like(batch.tokens, -100)
    labels[:, 1:] = torch.where(batch.loss_weights > 0, batch.targets, -100)[:, :-1]
    return {"input_ids": batch.tokens, "position_ids": batch.positions, "labels": labels}


def padded_for_llama(batch: Batch, pad_id: int) -> dict[str, Tensor]:
    """The documents of the same rows, one per row, padded to the longest."""
    found = [ids[own == number] for ids, own in zip(batch.tokens, batch.document_ids) for number in range(1, int(own.max()) + 1)]
    ids = torch.nn.utils.rnn.pad_sequence(found, batch_first=True, padding_value=pad_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in found], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask > 0, ids, -100)}


def gate(ours: TokenObjective, llama: LlamaForCausalLM, batch: Batch, inputs: dict[str, Tensor]) -> str:
    """Whether loss and gradients agree."""
    mine, theirs = ours(batch).loss, llama(**inputs, use_cache=False).loss
    mine.backward(), theirs.backward()
    others = dict(llama.named_parameters())
    worst = max(
        float((p.grad - others[name].grad).abs().max()) for name, p in ours.model.named_parameters() if p.grad is not None
    )
    ours.zero_grad(), llama.zero_grad()
    difference = abs(float(mine.detach() - theirs.detach()))
    if difference > 1e-5:
        return f"losses differ by {difference:.1e}"
    return "ok" if worst <= 1e-4 else f"gradients differ by {worst:.1e}"


def our_steps(objective: TokenObjective, loader: SequenceLoader, batches: list[Batch]) -> list[float]:
    """Seconds of some steps of our loop."""
    task = TimedTask(objective, loader, batches)
    with tempfile.TemporaryDirectory() as folder:
        train(task, train_config(), Path(folder) / "run")
    return task.timed.seconds()


def trainer_steps(llama: LlamaForCausalLM, batches: list[dict[str, Tensor]]) -> list[float]:
    """Seconds of some steps of the Trainer."""
    data = TimedData(batches)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=STEPS + 2, per_device_train_batch_size=1, learning_rate=1e-4, lr_scheduler_type="constant",
            weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0, use_cpu=True, report_to=[], save_strategy="no",
            disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False, train_sampling_strategy="sequential",
            remove_unused_columns=False,
        )  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr):  # it prints a summary where our rows go
            Trainer(llama, arguments, train_dataset=data, data_collator=lambda found: found[0]).train()
    return data.timed.seconds()


def saving_steps(
    objective: TokenObjective, loader: SequenceLoader, batches: list[Batch], **saving: Any
) -> tuple[list[float], bool]:
    """Seconds of some steps of our loop with those settings, and whether the last checkpoint holds the weights."""
    task = TimedTask(objective, loader, batches)
    with tempfile.TemporaryDirectory() as folder:
        train(task, train_config(**saving), Path(folder) / "run")
        saved = read_tensors(Path(folder) / "run" / "checkpoints" / f"step-{STEPS + 2:08d}" / "module-objective.safetensors")
    return task.timed.seconds(), all(torch.equal(saved[name], value) for name, value in objective.state_dict().items())


def saving_rows(shape: Shape) -> Iterator[Row]:
    """The mean time of a step with checkpoints, written at once and while training goes on, beside none."""
    (objective, _), loader = shape.models(), shape.loader()
    batches = [loader.batch(step) for step in range(STEPS + 2)]
    plain: dict[str, Any] = {}
    at_once: dict[str, Any] = {"checkpoint_every": 2}
    settings = {"none": plain, "written at once": at_once, "written from a copy": {**at_once, "async_save": True}}
    runs: dict[str, list[tuple[list[float], bool]]] = {name: [] for name in settings}
    for _ in range(ROUNDS):
        for name, how in settings.items():
            runs[name].append(saving_steps(objective, loader, batches, **how))
    mean = {name: 1e3 * statistics.mean(time for times, _ in found for time in times) for name, found in runs.items()}
    for name in list(settings)[1:]:
        yield Row(
            row=f"time of a step, a checkpoint every second one {name} / no checkpoints",
            ours=round(mean[name], 1),
            peer=round(mean["none"], 1),
            ratio=round(mean["none"] / mean[name], 3),
            unit="ms",
            limit_fraction=None,
            gate="ok" if all(whole for _, whole in runs[name]) else "the checkpoint is not that of the weights",
        )


def step_rows(shape: Shape) -> Iterator[Row]:
    """Time against packed and padded rows, then the peak memory of a forward and backward pass."""
    (ours, llama), loader = shape.models(), shape.loader()
    batches = [loader.batch(step) for step in range(STEPS + 2)]
    packed = [packed_for_llama(batch) for batch in batches]
    padded = [padded_for_llama(batch, shape.vocab.pad_id) for batch in batches]
    gates = [gate(ours, llama, batches[0], inputs[0]) for inputs in (packed, padded)]
    seconds: dict[str, list[list[float]]] = {"ours": [], "packed": [], "padded": []}
    for _ in range(ROUNDS):
        seconds["ours"].append(our_steps(ours, loader, batches))
        seconds["packed"].append(trainer_steps(llama, packed))
        seconds["padded"].append(trainer_steps(llama, padded))
    tokens = statistics.mean(batch.num_tokens for batch in batches)
    speed = {name: tokens / statistics.median(chain(*rounds)) for name, rounds in seconds.items()}
    for name, checked in zip(("packed", "padded"), gates):
        ratios = [statistics.median(theirs) / statistics.median(mine) for mine, theirs in zip(seconds["ours"], seconds[name])]
        row = Row(
            row=f"{shape.name}: useful tokens per second / Trainer, {name} rows",
            ours=round(speed["ours"]),
            peer=round(speed[name]),
            ratio=round(speed["ours"] / speed[name], 3),
            unit="tokens/s",
            limit_fraction=None,
            gate=checked,
        )
        row["spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
        yield row
    passes: list[Callable[[], Any]] = [
        lambda: ours(batches[0]).loss.backward(),
        lambda: llama(**packed[0], use_cache=False).loss.backward(),
    ]
    mine, theirs = (peak_mib(action) for action in passes)
    name = f"{shape.name}: peak memory of forward and backward / Trainer's model, packed rows"
    yield Row(row=name, ours=mine, peer=theirs, ratio=theirs / mine, unit="MiB", limit_fraction=None, gate=gates[0])


def rows() -> Iterator[Row]:
    """The shapes, then checkpoints."""
    logging.set_verbosity_error()
    for shape in (QUARTER, MIXED, SHORT):
        yield from step_rows(shape)
    yield from saving_rows(SHORT)


if __name__ == "__main__":
    report(rows, __doc__ or "")
