"""All four trainings as users start them: their losses stay what they were, they resume at every step, no process matters.

`tests/golden/train/losses.json` holds the losses of 50 steps in fp32 on one thread. A change that is meant to move them writes
them anew: `OMP_NUM_THREADS=1 python tests/test_trainings.py > tests/golden/train/losses.json`. With a folder as argument the
file runs the language model's training there, for the comparison of processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import retrieval
import sft.train
from cm3.core import artefact
from cm3.core.errors import Preempted
from cm3.documents.document import Document
from cm3.model.presets import create_model
from cm3.pretrain.run import ModelSection, PretrainConfig, model_config, pretrain, run_folder, save_language_model
from cm3.sequences.shards import write_shards
from cm3.tokens import BPETextTokenizer, DocumentTokenizer, vocab_for
from cm3.train.loop import TrainResult
from cm3.train.metrics import read_records
from cm3.train.stepping import Stepper
from retrieval.config import TrainEncoderConfig
from vqgan.config import VQConfig, VQTrainConfig
from vqgan.model import VQModel
from vqgan.tokenizer import VQTokenizer
from vqgan.training import train as train_vqgan

GOLDEN = Path(__file__).parent / "golden" / "train" / "losses.json"
COLORS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (240, 220, 40)}
MODEL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "dropout": 0.1}
LOADER = {"row_length": 64, "batch_size": 2, "window": 16}
SIZE = 16


def make_inputs(folder: Path) -> Path:
    """What the four trainings start from: pictures with texts, a tokenizer of each kind, token shards, a language model."""
    lines = []
    (folder / "pictures").mkdir(parents=True)
    for left in COLORS:
        for right in COLORS:
            picture = Image.new("RGB", (SIZE, SIZE), COLORS[right])
            picture.paste(COLORS[left], (0, 0, SIZE // 2, SIZE))
            name = f"{left}-{right}"
            picture.save(folder / "pictures" / f"{name}.png")
            line = {"image": f"pictures/{name}.png", "text": f"{left} beside {right}", "question": "the left?", "answer": left}
            lines.append({"id": name, **line})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        images = VQTokenizer(VQModel(VQConfig(image_size=SIZE, downsample_factor=8, codebook_size=16, codebook_dim=8)))
    images.save(folder / "images")
    text = BPETextTokenizer.train([line["text"] for line in lines] + ["the left?", "describe"], 290)
    tokenizer = DocumentTokenizer(vocab_for(text, 16, (2, 2)), text, images)
    with artefact.writing(folder / "tokenizer", "document_tokenizer") as inside:
        tokenizer.save(inside)
    documents = [Document.pair(line["id"], line["text"], Image.open(folder / line["image"])) for line in lines]
    write_shards(tokenizer.encode_many(documents), folder / "tokens", tokenizer)
    model = create_model(model_config(ModelSection(overrides=MODEL), tokenizer.vocab), 0)
    save_language_model(folder / "model", model, tokenizer, TrainResult(0, [], 0.0, None), {})
    return folder


def train_language_model(inputs: Path, out: Path, settings: dict[str, Any]) -> Path:
    parts = {"tokens": inputs / "tokens", "tokenizer": inputs / "tokenizer", "held_out": inputs / "tokens", "out": out}
    section = {"model": {"overrides": MODEL}, "loader": LOADER, "train": settings}
    pretrain(PretrainConfig.model_validate({**parts, **section}))
    return run_folder(out)


def tune(inputs: Path, out: Path, settings: dict[str, Any]) -> Path:
    tasks = ("captioning", "vqa", "infilling")
    mixture = [{"task": task, "data": inputs / "data.jsonl"} for task in tasks]
    parts = {"model": inputs / "model", "image_tokenizer": inputs / "images", "out": out}
    sft.train.train(sft.train.SFTConfig.model_validate({**parts, "mixture": mixture, "loader": LOADER, "train": settings}))
    return run_folder(out)


def train_tokenizer(inputs: Path, out: Path, settings: dict[str, Any], loss: dict[str, Any] | None = None) -> Path:
    network = {"quantizer": "cosine", "codebook_size": 16, "codebook_dim": 8, "network_options": {"width": 16}}
    parts = {"data": str(inputs / "pictures"), "tokenizer": {"image_size": SIZE, **network}, "batch_size": 4}
    train_vqgan(VQTrainConfig.model_validate({**parts, "loss": loss or {}, "train": settings}), out)
    return run_folder(out)


def train_encoder(inputs: Path, out: Path, settings: dict[str, Any]) -> Path:
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {"image_size": SIZE, "patch_size": 8, "max_text_length": 16, "vocab_size": 300, "projection_dim": 24}
    values = {"shape": {**shape, "vision": tower, "text": tower}, "batch_size": 8, "held_out_fraction": 0.0, "train": settings}
    retrieval.train_encoder(inputs / "data.jsonl", out, TrainEncoderConfig.model_validate(values), run_folder(out))
    return run_folder(out)


TRAININGS: dict[str, Callable[[Path, Path, dict[str, Any]], Path]] = {
    "language_model": train_language_model,
    "tuning": tune,
    "tokenizer": train_tokenizer,
    "encoder": train_encoder,
}
# from the third step on with a discriminator, which has an optimizer of its own
ADVERSARIAL = {"adversarial": 0.5, "adversarial_start": 2, "discriminator_channels": 4, "discriminator_layers": 1, "lecam": 0.1}
RESUMED = TRAININGS | {"tokenizer": partial(train_tokenizer, loss=ADVERSARIAL)}


def settings(steps: int, **changes: Any) -> dict[str, Any]:
    plain = {"device": "cpu", "precision": "fp32", "tensorboard": False, "checkpoint_every": 0, "log_every": 1}
    return {"steps": steps, "learning_rate": 1e-3, "warmup_steps": 2, **plain, **changes}


def losses(name: str, inputs: Path, out: Path) -> list[float]:
    """The loss of each of 50 steps.

    Slow enough that what another CPU rounds otherwise stays below 1e-5: a tokenizer's codes jump, the others' losses do not.
    """
    rate = 1e-5 if name == "tokenizer" else 3e-4
    records = read_records(TRAININGS[name](inputs, out, settings(50, learning_rate=rate)) / "metrics.jsonl")
    return [record["loss"] for record in records if record["kind"] == "train"]


def hashes(run_dir: Path, step: int) -> dict[str, str]:
    """File → SHA-256 of the tensors of a checkpoint: weights, optimizers, averages."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    return {file.name: artefact.hash_file(file) for file in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture(autouse=True)
def _quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CM3_PROGRESS", "off")


@pytest.mark.parametrize("name", TRAININGS)
def test_the_losses_are_what_they_were(name: str, inputs: Path, tmp_path: Path) -> None:
    assert losses(name, inputs, tmp_path / "out") == pytest.approx(json.loads(GOLDEN.read_text())[name], rel=1e-5)


@pytest.mark.parametrize("name", RESUMED)
def test_stopped_and_resumed_at_every_step_the_bits_are_the_same(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run that is stopped after each of its steps, one that is not: an error at any resumption stays in all that follows."""
    run, steps = partial(RESUMED[name], inputs, settings=settings(6, ema_decay=0.5)), 6
    whole = hashes(run(out=tmp_path / "whole"), steps)
    assert {stem.partition("-")[0].partition(".")[0] for stem in whole} == {"module", "optimizer", "ema"}
    one_step = Stepper.one_step

    def stopping(stepper: Stepper) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return one_step(stepper)

    monkeypatch.setattr(Stepper, "one_step", stopping)
    for step in range(1, steps + 1):
        torch.manual_seed(step)  # whatever another program did meanwhile
        with pytest.raises(Preempted, match=f"stopped after step {step} "):
            run(out=tmp_path / "stopped")
    assert hashes(run_folder(tmp_path / "stopped"), steps) == whole


def test_a_fresh_process_writes_the_same_bits(inputs: Path, tmp_path: Path) -> None:
    """As this one, which has trained others before; from the pictures on, and with other hashes of strings."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, __file__, str(tmp_path / "fresh")], env=environment, check=True, capture_output=True)
    here = hashes(train_language_model(inputs, tmp_path / "here", settings(6)), 6)
    assert hashes(run_folder(tmp_path / "fresh" / "out"), 6) == here
    assert here


if __name__ == "__main__":
    if sys.argv[1:]:
        place = Path(sys.argv[1])
        train_language_model(make_inputs(place / "inputs"), place / "out", settings(6))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            made = make_inputs(Path(scratch) / "inputs")
            print(json.dumps({name: losses(name, made, Path(scratch) / name) for name in TRAININGS}, indent=1))
