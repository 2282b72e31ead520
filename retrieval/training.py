"""Training a CLIP from scratch on pairs of pictures and texts, for those who cannot or will not download one.

    documents → text tokenizer, framed pictures → contrastive steps of `cm3.train` → folder in the layout of transformers

The result is an artefact of kind "encoder" that `load_encoder` and transformers' `CLIPModel.from_pretrained` both read.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPModel

from cm3.core.artefact import require_replaceable, writing
from cm3.core.errors import UsageError
from cm3.core.runfile import write_resolved
from cm3.core.seeding import numpy_generator
from cm3.core.storage import sibling
from cm3.documents.document import Document
from cm3.documents.readers import read_documents
from cm3.documents.report import ReadReport
from cm3.documents.split import is_held_out
from cm3.train.estimate import RunEstimate
from cm3.train.loop import train
from cm3.train.optimizers import split_decay
from cm3.train.processes import on_main_process
from cm3.train.task import Metrics, Shard
from cm3.train.trial import Examples, estimate_by_trial
from retrieval.batches import LengthGroupedOrder
from retrieval.config import TrainEncoderConfig
from retrieval.contrastive import alike_pairs, contrastive_loss
from retrieval.encoders.preprocessing import Preprocessing
from retrieval.encoders.presets import EncoderShape
from retrieval.encoders.text import encode_padded, train_text_tokenizer
from retrieval.gathering import gather_candidates
from retrieval.hard_texts import WordExchange
from retrieval.metrics import recall_metrics
from retrieval.pair_model import PairModel, new_clip, save_encoder
from retrieval.pairs import Pairs, collect_pairs

KIND = "encoder"
_PAIR_BYTES = 4 * 4 + 3  # both similarities and their logarithms of shares in fp32, and which pairs are alike


@dataclass(frozen=True)
class TrainedEncoder:
    """What `train_encoder` made.

    metrics: figures on the held-out pairs, empty without any (see `recall_metrics`). passed_over: documents that were no pair.
    history: the records of metrics.jsonl, oldest first.
    """

    path: Path
    metrics: dict[str, float]
    num_pairs: int
    num_held_out: int
    passed_over: int
    seconds: float
    history: list[dict[str, Any]]


def train_encoder(
    data: Path | str | Iterable[Document] | None = None,
    out: Path | str | None = None,
    config: TrainEncoderConfig | None = None,
    run_dir: Path | str | None = None,
    report: ReadReport | None = None,
) -> TrainedEncoder:
    """Train an encoder on `data` (a source for `read_documents`, or documents) and write it to `out`.

    `data` and `out` default to those of `config`. Checkpoints and metrics go to `run_dir`; without one they go to a hidden
    folder beside `out`, named after configuration and data, which is removed at the end. Calling again after an interruption
    continues there.

    Raises `UsageError` without data or out, when the run does not fit into memory or `run_dir` holds a run on other data or with
    another network, `InputError` for fewer than two pairs, and what `train` and `read_documents` raise.
    """
    config = config or TrainEncoderConfig()
    source, target = data if data is not None else config.data, out or config.out
    if source is None or target is None:
        raise UsageError("training an encoder needs data and out: where the pairs are, and the folder to write")
    target, shape = Path(target), config.resolve()
    require_replaceable(target, KIND)
    documents = read_documents(source, report=report) if isinstance(source, str | Path) else source
    pairs = collect_pairs(documents, Preprocessing.square(shape.image_size))
    training, held_out = split_pairs(pairs, config)
    task = ContrastiveTask(training, held_out, config, shape)
    task.estimate().announce()
    scratch = sibling(target, prefix=".", suffix=f".run-{_digest(config, pairs)}")
    result = train(task, config.train, Path(run_dir) if run_dir else scratch, "encoder")
    metrics = next((_figures(record) for record in reversed(result.history) if record["kind"] == "eval"), {})
    provenance = {"config": config.model_dump(mode="json"), "metrics": metrics, "pairs": len(training), "held_out": len(held_out)}
    clip = task.clip
    if result.ema is not None:
        clip.load_state_dict({name.removeprefix("clip."): value for name, value in result.ema["pair"].items()}, strict=False)

    def write() -> None:
        with writing(target, KIND, provenance) as folder:
            save_encoder(clip, task.tokenizer, shape, folder)
            write_resolved(config, folder)
        shutil.rmtree(scratch, ignore_errors=True)

    on_main_process(write)
    return TrainedEncoder(target, metrics, len(training), len(held_out), pairs.passed_over, result.seconds, result.history)


def split_pairs(pairs: Pairs, config: TrainEncoderConfig) -> tuple[Pairs, Pairs]:
    """(training, held-out) pairs by id; a held-out pair whose picture or text also stands in training is in neither."""
    out = np.array([is_held_out(name, config.held_out_fraction, config.train.seed) for name in pairs.ids])
    if (~out).sum() < 2:  # so few pairs that training needs them all
        out[:] = False
    training = pairs.take(np.flatnonzero(~out))
    fresh = out & ~np.isin(pairs.image_keys, training.image_keys) & ~np.isin(pairs.text_keys, training.text_keys)
    return training, pairs.take(np.flatnonzero(fresh)[: config.held_out])


@dataclass
class PairBatch:
    """B pairs.

    pixels (B, 3, Y, X) float32; ids, mask (B or 2B, T) int64: the texts, then their hard versions; keys (B, 2) int64: of picture
    and text, equal for equal contents.
    """

    pixels: Tensor
    ids: Tensor
    mask: Tensor
    keys: Tensor


class ContrastiveTask:
    """Fulfils `TrainingTask`: batches of pairs, the symmetric contrastive loss, recall on held-out pairs."""

    def __init__(self, pairs: Pairs, held_out: Pairs, config: TrainEncoderConfig, shape: EncoderShape) -> None:
        self.pairs, self.held_out, self.config, self.shape = pairs, held_out, config, shape
        self.preprocessing = Preprocessing.square(shape.image_size)
        self.tokenizer = train_text_tokenizer(pairs.texts, shape.vocab_size)
        lengths = np.array([len(encoding.ids) for encoding in self.tokenizer.encode_batch(pairs.texts)])
        self.order = LengthGroupedOrder(lengths, config.batch_size, config.train.seed)
        self.exchange = WordExchange(pairs.texts) if config.hard_texts else None
        self.modules: dict[str, nn.Module] = {"pair": PairModel(new_clip(self.tokenizer, config, shape), config.chunk_size)}

    @property
    def clip(self) -> CLIPModel:
        """The network being trained, without wrappers."""
        return self._pair_model.clip

    @property
    def _pair_model(self) -> PairModel:
        model: Any = self.modules["pair"]
        return getattr(model, "module", model)

    def parameter_groups(self) -> dict[str, list[dict[str, Any]]]:
        """One optimizer for everything; vectors and the scale are not decayed."""
        return {"model": split_decay(self.modules["pair"].named_parameters())}

    def settings(self) -> dict[str, Any]:
        """The settings that decide the result: what a run that goes on must have had from its start."""
        return {
            "data": {"fingerprint": self.pairs.fingerprint()},
            "held_out": {"fingerprint": self.held_out.fingerprint()},
            "shape": self.shape.model_dump(mode="json"),
            **self.config.model_dump(mode="json", include={"batch_size", "hard_texts", "temperature"}),
        }

    def estimate(self) -> RunEstimate:
        """What the training will need: activations of `chunk_size` pairs at a time, similarities of all pairs of a step."""
        examples = Examples(self.config.batch_size, "pairs", at_once=self.config.chunk_size, pair_bytes=_PAIR_BYTES)

        def remedy(fitting: int) -> str:
            if fitting:
                return f"set chunk_size={fitting}"
            return "choose a smaller preset, smaller pictures (shape.image_size), or fewer pairs (batch_size)"

        with self._pair_model.unchunked():  # checkpointing would hide what a chunk keeps
            return estimate_by_trial(self, self.config.train, examples, remedy)

    def batch(self, step: int, shard: Shard) -> PairBatch:
        """The pairs of `shard` in `step`. Raises `UsageError` when the batch cannot be cut into equal shards."""
        if self.config.batch_size % shard.count:
            raise UsageError(
                f"batch_size {self.config.batch_size} cannot be cut into {shard.count} equal parts (processes times "
                "accumulation_steps); take a multiple of that"
            )
        chosen = self.pairs.take(self.order.rows(step)[shard.index :: shard.count])
        texts = list(chosen.texts)
        if self.exchange is not None:
            rng = numpy_generator(self.config.train.seed, "hard texts", step, shard.index)
            texts += [self.exchange.draw(text, rng) for text in chosen.texts]
        ids, mask = encode_padded(self.tokenizer, texts, self.shape.max_text_length)
        pixels = torch.from_numpy(self.preprocessing.normalize(chosen.frames))
        keys = torch.from_numpy(np.stack([chosen.image_keys, chosen.text_keys], axis=1))  # (B, 2)
        return PairBatch(pixels, torch.from_numpy(ids), torch.from_numpy(mask), keys)

    def loss(self, name: str, batch: PairBatch, step: int) -> tuple[Tensor, Metrics]:
        """The contrastive loss among the pairs of all processes, and the learned scale."""
        images, texts, scale = self.modules["pair"](batch.pixels, batch.ids, batch.mask)
        texts, hard = texts[: len(images)], texts[len(images) :]
        candidates, keys = gather_candidates(images, texts, batch.keys)
        alike = alike_pairs(batch.keys, keys)
        loss = contrastive_loss(images, texts, scale, alike, hard if len(hard) else None, candidates)
        return loss, {"scale": scale.detach()}

    def evaluate(self) -> dict[str, float]:
        """Recall and reciprocal rank on the held-out pairs; nothing when there are fewer than two."""
        if len(self.held_out) < 2:
            return {}
        images, texts = self._vectors(self.held_out)
        return recall_metrics(images, texts, self.held_out.image_keys, self.held_out.text_keys)

    def _vectors(self, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        device = self.clip.device
        found = []
        for start in range(0, len(pairs), 64):
            part = pairs.take(np.arange(start, min(start + 64, len(pairs))))
            ids, mask = encode_padded(self.tokenizer, part.texts, self.shape.max_text_length)
            arrays = (self.preprocessing.normalize(part.frames), ids, mask)
            images, texts, _ = self.modules["pair"](*(torch.from_numpy(array).to(device) for array in arrays))
            found.append((images.cpu().numpy(), texts.cpu().numpy()))
        return np.concatenate([images for images, _ in found]), np.concatenate([texts for _, texts in found])


def _digest(config: TrainEncoderConfig, pairs: Pairs) -> str:
    settings = config.model_dump_json(exclude={"data", "out"})
    return hashlib.sha256(f"{settings}{pairs.fingerprint()}".encode()).hexdigest()[:12]


def _figures(record: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if "/" in name or name.startswith("chance")}
