"""Training an encoder: it learns, the folder is complete, and held-out pairs stay out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import retrieval
import retrieval.training as training
from cm3.core.artefact import verify, writing
from cm3.core.errors import InputError, UsageError
from cm3.core.runfile import validate
from cm3.documents.document import Document, TextSegment
from cm3.train import trial
from cm3.train.task import Shard
from retrieval.config import TrainEncoderConfig
from retrieval.encoders.preprocessing import Preprocessing
from retrieval.encoders.presets import ENCODER_PRESETS, EncoderShape
from retrieval.pairs import collect_pairs
from retrieval.training import ContrastiveTask, split_pairs


def config(shape: EncoderShape, steps: int = 2, **changes: Any) -> TrainEncoderConfig:
    values = {
        "shape": shape.model_dump(),
        "batch_size": 24,
        "held_out_fraction": 0.0,
        "train": {"steps": steps, "optimizer": "muon", "learning_rate": 5e-3, "tensorboard": False, "checkpoint_every": 0},
    }
    return validate(TrainEncoderConfig, {**values, **changes})


def test_learns_which_picture_a_text_describes(pairs: list[Document], tiny_shape: EncoderShape, tmp_path: Path) -> None:
    trained = retrieval.train_encoder(pairs, tmp_path / "encoder", config(tiny_shape, steps=60))
    losses = [record["loss"] for record in trained.history if record["kind"] == "train"]
    assert losses[0] > 1.2 * losses[-1]
    figures = retrieval.evaluate(trained.path, pairs)
    assert figures["pairs"] == 48
    assert figures["text_to_image/recall_at_1"] > 0.5 > 10 * figures["chance_at_1"]


def test_a_run_that_cannot_fit_is_refused_with_what_makes_it_fit(
    pairs: list[Document], tiny_shape: EncoderShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = collect_pairs(pairs, Preprocessing.square(tiny_shape.image_size))
    task = ContrastiveTask(found, found.take(np.arange(0)), config(tiny_shape), tiny_shape)
    whole = task.estimate()
    chunked = ContrastiveTask(found, found.take(np.arange(0)), config(tiny_shape, chunk_size=3), tiny_shape).estimate()
    each = (whole.step_bytes - chunked.step_bytes) // 21
    assert whole.step_bytes == 8 * chunked.step_bytes - 7 * training._PAIR_BYTES * 24 * 24
    assert whole.flops == chunked.flops
    room = (whole.total_bytes - 20.5 * each) / trial.USABLE_SHARE
    monkeypatch.setattr(trial, "available_memory", lambda device: int(room))
    with pytest.raises(UsageError, match=r"are free; set chunk_size=3$"):
        retrieval.train_encoder(pairs, tmp_path / "encoder", config(tiny_shape))
    assert list(tmp_path.iterdir()) == []
    retrieval.train_encoder(pairs, tmp_path / "encoder", config(tiny_shape, chunk_size=3, steps=1))
    monkeypatch.setattr(trial, "available_memory", lambda device: whole.state_bytes)
    with pytest.raises(UsageError, match="choose a smaller preset"):
        retrieval.train_encoder(pairs, tmp_path / "other", config(tiny_shape))


def test_learns_in_bf16_and_is_measured_in_fp32(pairs: list[Document], tiny_shape: EncoderShape, tmp_path: Path) -> None:
    settings = {"steps": 40, "optimizer": "muon", "learning_rate": 5e-3, "tensorboard": False, "precision": "bf16"}
    trained = retrieval.train_encoder(pairs, tmp_path / "encoder", config(tiny_shape, train=settings, held_out_fraction=0.3))
    losses = [record["loss"] for record in trained.history if record["kind"] == "train"]
    assert losses[0] > 1.2 * losses[-1]
    assert trained.metrics["text_to_image/recall_at_1"] > trained.metrics["chance_at_1"]


def test_the_folder_is_a_verified_artefact_and_nothing_else_is_left(
    pairs: list[Document], tiny_shape: EncoderShape, tmp_path: Path
) -> None:
    trained = retrieval.train_encoder(pairs, tmp_path / "encoder", config(tiny_shape, held_out_fraction=0.3))
    assert verify(trained.path, "encoder").provenance["pairs"] == trained.num_pairs
    assert trained.num_pairs + trained.num_held_out == 48
    assert trained.metrics["chance_at_1"] == pytest.approx(1 / trained.num_held_out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["encoder"]


def test_of_two_processes_one_writes(
    pairs: list[Document],
    tiny_shape: EncoderShape,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_two: Callable[[Callable[[], object]], list[int]],
) -> None:
    """Both return when the folder is complete, and nothing else is left."""

    def counted(target: Path, *rest: Any) -> Any:
        with open(tmp_path / "writers", "a") as file:
            file.write(".")
        return writing(target, *rest)

    monkeypatch.setattr(training, "writing", counted)
    settings = config(tiny_shape, train={"steps": 2, "device": "cpu", "tensorboard": False})
    assert on_two(lambda: verify(retrieval.train_encoder(pairs, tmp_path / "encoder", settings).path, "encoder")) == [0, 0]
    assert (tmp_path / "writers").read_text() == "."
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["encoder", "writers"]


def test_the_same_seed_gives_the_same_encoder(pairs: list[Document], tiny_shape: EncoderShape, tmp_path: Path) -> None:
    vectors = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        settings = config(tiny_shape, train={"steps": 2, "seed": seed, "tensorboard": False})
        path = retrieval.train_encoder(pairs, tmp_path / name, settings).path
        vectors.append(retrieval.load_encoder(path).encode_texts(["red at the left"]))
    assert (vectors[0] == vectors[1]).all()
    assert (vectors[0] != vectors[2]).any()


def test_another_task_does_not_go_on_in_a_run_folder(pairs: list[Document], tiny_shape: EncoderShape, tmp_path: Path) -> None:
    out, run = tmp_path / "encoder", tmp_path / "run"
    retrieval.train_encoder(pairs, out, config(tiny_shape), run)
    wider = tiny_shape.model_copy(update={"projection_dim": 2 * tiny_shape.projection_dim})
    for named, documents, changed in (
        ("data.fingerprint=", pairs[:-1], config(tiny_shape)),
        (r"shape.projection_dim=\d+, this run has \d+", pairs, config(wider)),
        ("temperature=0.07, this run has 0.1", pairs, config(tiny_shape, temperature=0.1)),
    ):
        with pytest.raises(UsageError, match=f"step-00000002 was made with {named}"):
            retrieval.train_encoder(documents, out, changed, run)
    assert retrieval.train_encoder(pairs, out, config(tiny_shape, chunk_size=5), run).metrics == {}


def test_data_and_out_may_stand_in_the_run_file(tiny_shape: EncoderShape, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="data and out"):
        retrieval.train_encoder(config=config(tiny_shape))
    with pytest.raises(InputError):
        retrieval.train_encoder(config=config(tiny_shape, data=str(tmp_path / "nothing"), out=str(tmp_path / "encoder")))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_pairs_are_an_input_error(count: int, pairs: list[Document], tmp_path: Path) -> None:
    documents = [*pairs[:count], Document("t", (TextSegment("no picture"),))]
    with pytest.raises(InputError, match=f"{count} were found among {count + 1}"):
        retrieval.train_encoder(documents, tmp_path / "encoder")


def test_two_pairs_are_enough_to_run(pairs: list[Document], tiny_shape: EncoderShape, tmp_path: Path) -> None:
    trained = retrieval.train_encoder(pairs[:2], tmp_path / "encoder", config(tiny_shape, held_out_fraction=0.5))
    assert trained.num_pairs + trained.num_held_out <= 2
    assert trained.num_pairs >= 1


def test_a_held_out_pair_shares_nothing_with_training(pairs: list[Document], tiny_shape: EncoderShape) -> None:
    twins = [Document.pair(f"twin {pair.id}", pair.text, pair.images[0].load()) for pair in pairs[:24]]
    found = collect_pairs([*pairs, *twins], Preprocessing.square(24))
    training, held_out = split_pairs(found, config(tiny_shape, held_out_fraction=0.3))
    assert len(held_out) > 0
    assert len(training) + len(held_out) < len(found)
    assert not set(held_out.texts) & set(training.texts)
    assert not set(held_out.image_keys.tolist()) & set(training.image_keys.tolist())


def test_batches_are_pure_and_shards_disjoint(pairs: list[Document], tiny_shape: EncoderShape) -> None:
    found = collect_pairs(pairs, Preprocessing.square(24))
    task = ContrastiveTask(found, found.take(np.arange(0)), config(tiny_shape), tiny_shape)
    again = task.batch(3, Shard(0, 1))
    assert torch.equal(task.batch(3, Shard(0, 1)).ids, again.ids)
    halves = [task.batch(0, Shard(index, 2)).pixels for index in (0, 1)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), task.batch(0, Shard(0, 1)).pixels)
    assert task.evaluate() == {}
    epoch = torch.cat([task.batch(step, Shard(0, 1)).pixels for step in range(2)])  # 2 × 24 of 48 pairs
    assert len(torch.unique(epoch.flatten(1), dim=0)) == 48


def test_hard_texts_double_the_texts_only_when_asked(pairs: list[Document], tiny_shape: EncoderShape) -> None:
    found = collect_pairs(pairs, Preprocessing.square(24))
    for hard, factor in ((True, 2), (False, 1)):
        task = ContrastiveTask(found, found.take(np.arange(0)), config(tiny_shape, hard_texts=hard), tiny_shape)
        batch = task.batch(0, Shard(0, 1))
        assert len(batch.ids) == factor * len(batch.pixels)
        loss, metrics = task.loss("model", batch, 0)
        assert loss.requires_grad
        assert float(metrics["scale"]) == pytest.approx(1 / 0.07, rel=1e-4)


def test_every_preset_is_named_and_consistent() -> None:
    for name in ENCODER_PRESETS:
        assert TrainEncoderConfig(preset=name).resolve() == ENCODER_PRESETS[name]
    with pytest.raises(UsageError, match="tiny"):
        TrainEncoderConfig(preset="tinny").resolve()
    with pytest.raises(UsageError, match="patch_size"):
        TrainEncoderConfig(shape={"patch_size": 17}).resolve()
    with pytest.raises(UsageError, match="did you mean 'image_size'"):
        TrainEncoderConfig(shape={"image_sise": 48}).resolve()


def test_chunks_change_memory_and_nothing_else(pairs: list[Document], tiny_shape: EncoderShape) -> None:
    """Loss and gradients with the towers run on 5 pairs at a time are those of all 24 at once."""
    found, results = collect_pairs(pairs, Preprocessing.square(24)), []
    for chunk_size in (None, 5):
        settings = config(tiny_shape, hard_texts=True, chunk_size=chunk_size)
        task = ContrastiveTask(found, found.take(np.arange(0)), settings, tiny_shape)
        loss, _ = task.loss("model", task.batch(0, Shard(0, 1)), 0)
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in task.clip.parameters())])
    for plain, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain, atol=1e-6, rtol=1e-5)


def test_a_batch_that_processes_cannot_share_is_a_usage_error(pairs: list[Document], tiny_shape: EncoderShape) -> None:
    found = collect_pairs(pairs, Preprocessing.square(24))
    task = ContrastiveTask(found, found.take(np.arange(0)), config(tiny_shape), tiny_shape)
    with pytest.raises(UsageError, match="batch_size 24 cannot be cut into 7"):
        task.batch(0, Shard(0, 7))
