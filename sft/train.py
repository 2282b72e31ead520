"""Instruction tuning as a command: a language model and a mixture of tasks in, a tuned language model out.

    model folder + mixture ──► SequenceLoader (packed rows, loss on responses) ──► cm3.train's loop ──► OUT/

The loss, the training task and the loop are those of pretraining; only the data and the starting weights differ. The
options of the tasks are written beside the weights (`tasks.json`), so that inference asks exactly as training did.
Run as `accelerate launch -m sft.train RUN.toml [key.path=value …]`; checkpoints and metrics lie in OUT.run.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

import vqgan
from cm3.core.artefact import fingerprint, require_replaceable
from cm3.core.errors import InputError
from cm3.core.runfile import RunConfig, write_resolved
from cm3.pretrain.attention import use_attention
from cm3.pretrain.estimate import estimate_run
from cm3.pretrain.objective import LossConfig, TokenObjective
from cm3.pretrain.run import KIND as LANGUAGE_MODEL
from cm3.pretrain.run import (
    evaluation_batches,
    load_language_model,
    loader_and_loss,
    run_folder,
    save_language_model,
    say_skipped,
)
from cm3.pretrain.task import TokenTask
from cm3.sequences.batch import Batch
from cm3.sequences.loader import LoaderConfig, SequenceLoader
from cm3.sequences.objectives import ObjectiveConfig
from cm3.sequences.sources import Mixture
from cm3.tokens.document_tokenizer import DocumentTokenizer
from cm3.train.config import TrainConfig
from cm3.train.loop import train as run_loop
from cm3.train.processes import on_main_process
from sft.lora import LoRAConfig, add_adapters, merge_adapters, trainable_parameters
from sft.mixture import MixtureEntry, held_out_examples, make_mixture
from sft.tasks import TASKS_FILE, tasks_json

PLAIN = ObjectiveConfig(name="causal")  # a task masks for itself


class SFTConfig(RunConfig):
    """A run of instruction tuning.

    model: the language model to start from (what pretraining wrote, or a model folder); image_tokenizer: the image tokenizer
    that goes with it (None: the one inside `model`); out: where the tuned model goes; mixture: tasks and their data.
    held_out_documents: at most so many of each entry's held-out data are measured. `loader` takes no objective.
    lora: train low-rank adapters alone (None: all weights); what is written is the model with them added, and the adapters
    lie in OUT-run/adapters.
    """

    model: Path
    out: Path
    image_tokenizer: Path | None = None
    mixture: tuple[MixtureEntry, ...] = Field(min_length=1)
    held_out_documents: int = Field(default=256, ge=1)
    loader: LoaderConfig = LoaderConfig(objective=PLAIN)
    loss: LossConfig = LossConfig()
    lora: LoRAConfig | None = None
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _no_average_of_adapters(self) -> SFTConfig:
        if self.lora is not None and self.train.ema_decay is not None:
            raise ValueError("train.ema_decay averages whole models; leave it out when lora trains adapters")
        return self

    @model_validator(mode="after")
    def _tasks_mask_for_themselves(self) -> SFTConfig:
        if self.loader.objective not in (PLAIN, ObjectiveConfig()):
            raise ValueError("loader.objective would change nothing: the tasks of a mixture mask for themselves; leave it out")
        return self


def train(config: SFTConfig) -> Path:
    """Tune the model as `config` says, write it to `config.out` (a language-model folder with `tasks.json`), return that.

    Raises `ArtefactError` for a model and an image tokenizer that do not belong together, and what reading the data and
    `cm3.train.loop.train` raise.
    """
    tasks = {entry.task: entry.make_task() for entry in config.mixture}  # before anything slow, to meet its errors first
    require_replaceable(config.out, LANGUAGE_MODEL)
    model, text_only = load_language_model(config.model)
    if any(task.masks_texts for task in tasks.values()):
        model.config.texts_were_masked = True
    images = vqgan.from_pretrained(_image_tokenizer_path(config))
    tokenizer = DocumentTokenizer(text_only.vocab, text_only.text, images)
    loader_config = config.loader.model_copy(update={"objective": PLAIN})
    seed = config.train.seed
    mixture = make_mixture(config.mixture, tokenizer, seed, loader_config.row_length)
    loader = SequenceLoader(mixture, tokenizer.vocab, loader_config, seed)
    say_skipped(loader.skipped, "examples", loader_config)
    held_out = _held_out_batches(config, tokenizer, loader_config)
    use_attention(model, "auto", config.train)
    adapted = None if config.lora is None else add_adapters(model, config.lora, seed)
    context, trained = loader.plan.mean_context(), trainable_parameters(model)
    estimate_run(model.config, loader_config, config.train, context, trained).announce()
    objective = TokenObjective(model, tokenizer.vocab, config.loss)
    deciding = partial(_deciding, config, mixture, loader_config)
    task = TokenTask(objective, loader, held_out, context=context, settings=deciding)
    run_dir = run_folder(config.out)
    result = run_loop(task, config.train, run_dir, label="instruction tuning")
    on_main_process(lambda: write_resolved(config, run_dir))
    if adapted is not None:
        model = merge_adapters(adapted, run_dir / "adapters")
    provenance = {"config": config.model_dump(mode="json")}
    save_language_model(config.out, model, tokenizer, result, provenance, {TASKS_FILE: tasks_json(tasks)})
    return config.out


def _deciding(config: SFTConfig, mixture: Mixture, loader_config: LoaderConfig) -> dict[str, Any]:
    """The settings that decide the result: what a run that goes on must have had from its start."""
    entries = [
        {
            "task": entry.task,
            "options": entry.make_task().model_dump(mode="json"),
            "data": {"fingerprint": part.source.fingerprint},  # type: ignore[attr-defined]
            **entry.model_dump(mode="json", include={"weight", "loss_weight"}),
        }
        for entry, part in zip(config.mixture, mixture.parts)
    ]
    return {
        "model": {"fingerprint": fingerprint(config.model)},
        "image_tokenizer": {"fingerprint": fingerprint(_image_tokenizer_path(config))},
        "mixture": entries,
        "lora": config.lora and config.lora.model_dump(mode="json"),
        **loader_and_loss(loader_config, config.loss, config.train),
    }


def _image_tokenizer_path(config: SFTConfig) -> Path:
    path = config.image_tokenizer or config.model / "image_tokenizer"
    if not path.is_dir():
        raise InputError(f"there is no image tokenizer at {path}; name one with image_tokenizer=DIR")
    return path


def _held_out_batches(config: SFTConfig, tokenizer: DocumentTokenizer, loader_config: LoaderConfig) -> list[Batch]:
    examples = held_out_examples(config.mixture, tokenizer, config.train.seed, config.held_out_documents)
    return evaluation_batches(examples, tokenizer.vocab, loader_config)


def main() -> None:
    """Run `cm3 sft train` with the arguments of this process."""
    from cm3.cli import main as command

    command(["sft", "train", *sys.argv[1:]])


if __name__ == "__main__":
    main()
