"""Pretraining as a command: token shards and a document tokenizer in, a language-model folder out.

    tokens/ (shards) + tokenizer/ ──► SequenceLoader (objective, packing) ──► train ──► OUT/ (transformers layout + tokenizer)

The loop's own files (checkpoints, metrics) live in OUT-run beside the result, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, model_validator
from safetensors.torch import load_file
from torch import Tensor

from cm3.core import artefact
from cm3.core.arrays import read_array
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.core.runfile import RunConfig, write_resolved
from cm3.core.seeding import torch_generator
from cm3.core.storage import sibling
from cm3.documents.order import order_digest
from cm3.model import CM3Config, CM3ForCausalLM
from cm3.model.embedding_init import project_codebook, set_image_embeddings
from cm3.model.presets import PRESETS, create_model, preset
from cm3.pretrain.attention import Attention, use_attention
from cm3.pretrain.estimate import estimate_run
from cm3.pretrain.objective import LossConfig, TokenObjective
from cm3.pretrain.task import Sampler, TokenTask
from cm3.sequences.augmentation import AugmentationConfig, AugmentedSource
from cm3.sequences.batch import Batch
from cm3.sequences.loader import LoaderConfig, SequenceLoader, one_pass
from cm3.sequences.objectives import ObjectiveConfig
from cm3.sequences.shards import TokenShards
from cm3.sequences.sources import Mixture
from cm3.tokens import DocumentTokenizer, TokenizedDocument, Vocab
from cm3.tokens.document_tokenizer import CODEBOOK_FILE
from cm3.train.config import TrainConfig
from cm3.train.loop import TrainResult, train
from cm3.train.processes import on_main_process, process_count, say_on_main_process
from cm3.train.replay import Replayed, replay
from cm3.train.sharding import is_sharded, whole

KIND = "language_model"
_RECORDS = {"model_type", "texts_were_masked", "use_cache"}  # fields of `CM3Config` that no forward pass reads
NEIGHBORS_KIND, NEIGHBORS_FILE = "neighbors", "table.npy"


class ModelSection(RunConfig):
    """start: a language model or model folder to go on from (a converted one too), which the next three do not go with. Otherwise
    preset: a name in `cm3.model.presets`; overrides: fields of `CM3Config` to replace; codebook_init: start the image
    token embeddings from the code vectors of the image tokenizer, where the tokenizer folder has them.

    attention: the back end, "auto" is FlexAttention on a GPU, elsewhere SDPA a document at a time.
    """

    start: Path | None = None
    preset: str = "tiny"
    overrides: dict[str, Any] = Field(default_factory=dict)
    codebook_init: bool = True
    attention: Attention = "auto"

    @model_validator(mode="after")
    def _started_or_made(self) -> ModelSection:
        ignored = sorted(self.model_fields_set & {"preset", "overrides", "codebook_init"})
        if self.start is not None and ignored:
            raise ValueError(
                f"start={self.start} goes on with the model of that folder, and {', '.join(ignored)} would change nothing; "
                "leave out one or the other"
            )
        return self


class NeighborSection(RunConfig):
    """Retrieval augmentation: `table` is a folder with table.npy, (N, K) integers: for each of the N documents the indices of its
    neighbors among them, nearest first, -1 where there are fewer; `share` of the documents are given theirs, the rest stand
    alone. With 1 every document draws how many it takes by `augmentation.law` (RA-CM3: none to two)."""

    table: Path
    share: float = Field(0.5, gt=0, le=1)
    augmentation: AugmentationConfig = AugmentationConfig()


class PretrainConfig(RunConfig):
    """A pretraining run.

    tokens: token shards (`cm3 tokenize`); tokenizer: the document tokenizer they were made with; held_out: shards for
    evaluation, at most `held_out_documents` of them; out: where the language model goes; neighbors: retrieval augmentation;
    sample_with: the image tokenizer with which pictures are drawn for held-out texts after every evaluation (None: none are);
    verified: whether every byte of `tokens` is hashed before the run starts; without, their names and sizes are checked, and
    terabytes start at once.
    """

    tokens: Path
    tokenizer: Path
    out: Path
    held_out: Path | None = None
    held_out_documents: int = Field(512, ge=1)
    neighbors: NeighborSection | None = None
    sample_with: Path | None = None
    verified: bool = True
    model: ModelSection = ModelSection()
    loader: LoaderConfig = LoaderConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _neighbors_fit_a_row(self) -> PretrainConfig:
        longest = 0 if self.neighbors is None else self.neighbors.augmentation.max_length
        if longest > self.loader.row_length:
            raise ValueError(
                f"neighbors.augmentation.max_length={longest} is more than loader.row_length={self.loader.row_length}; "
                "lower it (leave room for three tokens per masked span) or use longer rows"
            )
        return self


def pretrain(config: PretrainConfig, sample: Callable[[Vocab], Sampler] | None = None) -> TrainResult:
    """Train a fresh model, or go on with one, as `config` says and write it to `config.out`.

    sample: makes what draws pictures after every evaluation, for the vocabulary. Raises `UsageError` when the run cannot fit
    into memory or its folder holds one with other settings, `ArtefactError` when shards and tokenizer do not belong
    together, and what `cm3.train.loop.train` raises.
    """
    artefact.require_replaceable(config.out, KIND)
    task, model, tokenizer = _prepare(config, sample)
    run_dir = run_folder(config.out)
    result = train(task, config.train, run_dir, label="pretraining")
    on_main_process(lambda: write_resolved(config, run_dir))
    save_language_model(config.out, model, tokenizer, result, {"config": config.model_dump(mode="json")})
    return result


def replay_step(config: PretrainConfig, file: Path) -> Replayed:
    """Compute a step that went wrong in the run of `config` once more (`cm3.train.replay.replay`, which raises the same)."""
    return replay(_prepare(config)[0], config.train, run_folder(config.out), file)


def _prepare(
    config: PretrainConfig, sample: Callable[[Vocab], Sampler] | None = None
) -> tuple[TokenTask, CM3ForCausalLM, DocumentTokenizer]:
    """The task of a run, the model it trains, and the tokenizer."""
    tokenizer = DocumentTokenizer.load(config.tokenizer)
    loader = SequenceLoader(training_documents(config, tokenizer), tokenizer.vocab, config.loader, config.train.seed)
    say_skipped(loader.plan.streams[0].skipped, "documents", config.loader)
    _say_most_spans(config.loader.objective, tokenizer.vocab)
    shape = model_config(config.model, tokenizer.vocab) if config.model.start is None else _shape_of(config.model.start)
    if config.loader.row_length > shape.max_position_embeddings:
        raise UsageError(
            f"loader.row_length={config.loader.row_length} is more than the model's max_position_embeddings="
            f"{shape.max_position_embeddings}; use shorter rows or set it in model.overrides"
        )
    context = loader.plan.mean_context()
    estimate_run(shape, config.loader, config.train, context, attention=config.model.attention).announce()
    model = _starting_model(config, tokenizer)
    masked = config.loader.objective.name == "cm3" and config.loader.objective.whole_segment_prob > 0
    if masked or config.model.start is None:  # a model that is trained on has learned it before, or not
        model.config.texts_were_masked = masked
    use_attention(model, config.model.attention, config.train)
    objective = TokenObjective(model, tokenizer.vocab, config.loss)
    sampler = sample(tokenizer.vocab) if sample is not None else None
    if sampler is not None and config.train.sharding == "full":
        say_on_main_process("no pictures are drawn while it trains: that needs whole weights, which train.sharding=full spreads")
    held_out = held_out_batches(config, tokenizer)
    deciding = partial(_deciding, config, tokenizer, model.config)
    return TokenTask(objective, loader, held_out, sampler, context, deciding), model, tokenizer


def _deciding(config: PretrainConfig, tokenizer: DocumentTokenizer, shape: CM3Config) -> dict[str, Any]:
    """The settings that decide the result: what a run that goes on must have had from its start."""
    neighbors, start = config.neighbors, config.model.start
    return {
        "tokens": {"fingerprint": artefact.fingerprint(config.tokens)},
        "tokenizer": {"fingerprint": tokenizer.fingerprint},
        "neighbors": neighbors
        and {
            "table": {"fingerprint": artefact.fingerprint(neighbors.table)},
            **neighbors.model_dump(mode="json", exclude={"table"}),
        },
        "model": {"start": start and artefact.fingerprint(start), "codebook_init": config.model.codebook_init, **sizes(shape)},
        **loader_and_loss(config.loader, config.loss, config.train),
    }


def sizes(shape: CM3Config) -> dict[str, Any]:
    """The fields of `CM3Config` that decide what a model computes."""
    values = shape.to_dict()
    return {name: values[name] for name in CM3Config.__annotations__ if name in values and name not in _RECORDS}


def loader_and_loss(loader: LoaderConfig, loss: LossConfig, train: TrainConfig) -> dict[str, Any]:
    """Those of their settings that decide the result; to be called when the processes have met.

    `overlong` only says whether there is one, and how the rows of a step are cut into batches does not matter, only how many.
    """
    return {
        "loader": {
            **loader.model_dump(mode="json", exclude={"overlong", "batch_size"}),
            "batch_size x accumulation_steps x processes": loader.batch_size * train.accumulation_steps * process_count(),
        },
        "loss": loss.model_dump(mode="json"),
    }


def training_documents(config: PretrainConfig, tokenizer: DocumentTokenizer) -> Mixture:
    """The shards alone, or mixed with themselves behind their neighbors.

    Raises `ArtefactError` for shards made with another tokenizer, and for a table of other shards.
    """
    shards = TokenShards(config.tokens, tokenizer, hashes=config.verified)
    if (section := config.neighbors) is None:
        return Mixture([(shards, 1.0)])
    made_of = artefact.verify(section.table, NEIGHBORS_KIND).provenance
    table = read_array(section.table / NEIGHBORS_FILE)
    if table.ndim != 2 or table.dtype.kind != "i" or (table.size and not -1 <= table.min() <= table.max() < len(shards)):
        raise ArtefactError(f"{section.table} does not name documents of {config.tokens}; make it again from those")
    if len(table) != len(shards):
        raise ArtefactError(
            f"{section.table} has the neighbors of {len(table)} documents, {config.tokens} holds {len(shards)}; "
            "they do not belong together"
        )
    digest = order_digest(shards.ids())
    for what in ("documents", "neighbors"):
        if made_of.get(what) != digest:
            raise ArtefactError(
                f"the {what} of {section.table} are other documents than those of {config.tokens}, or in another order: "
                "make memory, table and tokens of one source"
            )
    augmented = AugmentedSource(shards, shards, table, tokenizer.vocab, section.augmentation, config.train.seed)
    alone = [(shards, 1.0 - section.share)] if section.share < 1 else []
    return Mixture([*alone, (augmented, section.share)])


def run_folder(out: Path) -> Path:
    """Where the checkpoints and metrics of the run that makes `out` live."""
    return sibling(out, suffix="-run")


def build_model(section: ModelSection, vocab: Vocab, seed: int, codebook: Tensor | None = None) -> CM3ForCausalLM:
    """A fresh model for `vocab`; `codebook` (codebook_size, E) float starts the image token embeddings when given."""
    config = model_config(section, vocab)
    model = create_model(config, seed)
    if codebook is not None and section.codebook_init:
        generator = torch_generator(seed, "codebook_init")
        vectors = project_codebook(codebook, config.hidden_size, config.initializer_range, generator)
        set_image_embeddings(model, vectors, vocab.image_start)
    return model


def _shape_of(start: Path) -> CM3Config:
    artefact.verify(start)
    return CM3Config.from_pretrained(start)


def _starting_model(config: PretrainConfig, tokenizer: DocumentTokenizer) -> CM3ForCausalLM:
    start = config.model.start
    if start is None:
        return build_model(config.model, tokenizer.vocab, config.train.seed, _codebook(config))
    model, own = load_language_model(start)
    if own.fingerprint != tokenizer.fingerprint:
        raise ArtefactError(
            f"{start} was trained with another document tokenizer than {config.tokenizer}; tokenize the documents with its own "
            f"(cm3 tokenize ... --tokenizer {start}) and set tokenizer={start}"
        )
    return model


def model_config(section: ModelSection, vocab: Vocab) -> CM3Config:
    """The configuration of the model for `vocab`. Raises `UsageError` for an unknown preset or field."""
    fitting = {
        "vocab_size": vocab.size,
        "grid_shape": vocab.grid_shape,
        "grid_embedding": PRESETS.get(section.preset, {}).get("grid_embedding", True),  # published models stay as they are
        "image_start": vocab.image_start,
        "image_stop": vocab.image_stop,
        "pad_token_id": vocab.pad_id,
        "bos_token_id": vocab.bos_id,
        "eos_token_id": vocab.eos_id,
    }
    try:
        return preset(section.preset, **{**fitting, **section.overrides})
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UsageError(f"model.overrides give no model: {' '.join(str(error).split())}") from None


def held_out_batches(config: PretrainConfig, tokenizer: DocumentTokenizer) -> list[Batch]:
    """The held-out documents as batches (see `evaluation_batches`). Raises `ArtefactError` for those of another tokenizer."""
    if config.held_out is None:
        return []
    shards = TokenShards(config.held_out, tokenizer)
    documents = [shards[index] for index in range(min(len(shards), config.held_out_documents))]
    return evaluation_batches(documents, tokenizer.vocab, config.loader)


def evaluation_batches(documents: Sequence[TokenizedDocument], vocab: Vocab, config: LoaderConfig) -> list[Batch]:
    """Held-out documents in plain order (no objective): bits per token are then those of the documents.

    Those longer than a row are left out or raise `InputError`, as `config.overlong` says, like documents to train on.
    """
    fitting = [document for document in documents if len(document) <= config.row_length]
    skipped = len(documents) - len(fitting)
    if skipped and config.overlong == "refuse":
        raise InputError(
            f"{skipped} held-out documents are longer than row_length={config.row_length} (the longest has "
            f"{max(map(len, documents))} tokens); use longer rows, or overlong='skip' to leave them out"
        )
    say_skipped(skipped, "held-out documents", config)
    return list(one_pass(fitting, vocab, config.model_copy(update={"objective": ObjectiveConfig(name="causal")})))


def say_skipped(count: int, what: str, config: LoaderConfig) -> None:
    """Say how many documents are left out, if there are any."""
    if count:
        say_on_main_process(
            f"{count} {what} are longer than loader.row_length={config.row_length} and left out (loader.overlong=skip)"
        )


def _say_most_spans(objective: ObjectiveConfig, vocab: Vocab) -> None:
    if objective.name == "cm3" and objective.max_spans > vocab.num_masks:
        say_on_main_process(
            f"at most {vocab.num_masks} spans of a document are masked, not loader.objective.max_spans={objective.max_spans}: "
            "the vocabulary has so many <mask:i>"
        )


def save_language_model(
    out: Path,
    model: CM3ForCausalLM,
    tokenizer: DocumentTokenizer,
    result: TrainResult,
    provenance: Mapping[str, Any],
    json_files: Mapping[str, Any] | None = None,
) -> None:
    """Write model and tokenizer as one artefact folder; averaged weights replace the live ones where they were kept.

    json_files: further files to write into it, name → value. Called on every process: sharded weights are gathered, and the
    first process writes.
    """
    state = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    for name, tensor in ((result.ema or {}).get("objective") or {}).items():
        state[name.removeprefix("model.")] = tensor
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        model.load_state_dict(state)

    def write() -> None:
        with artefact.writing(out, kind=KIND, provenance={"steps": result.step, **provenance}) as folder:
            model.save_pretrained(folder, state_dict=state)
            tokenizer.save(folder)
            for name, value in (json_files or {}).items():
                artefact.write_json(folder / name, value)

    on_main_process(write)


def load_language_model(path: Path) -> tuple[CM3ForCausalLM, DocumentTokenizer]:
    """Model and tokenizer that `save_language_model` (or a model folder) holds, verified. Raises `ArtefactError`."""
    artefact.verify(path)
    tokenizer = DocumentTokenizer.load(path)
    model = CM3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    if model.config.vocab_size != tokenizer.vocab.size:
        raise ArtefactError(
            f"{path}: the model has vocab_size={model.config.vocab_size}, its tokenizer {tokenizer.vocab.size} ids; "
            "they do not belong together"
        )
    return model, tokenizer


def _codebook(config: PretrainConfig) -> Tensor | None:
    file = config.tokenizer / CODEBOOK_FILE
    return load_file(file)["codebook"] if file.exists() else None


def loss_curve(history: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The training records of a run as columns: "step" and every figure, for plotting."""
    records = [record for record in history if record["kind"] == "train"]
    names = sorted({name for record in records for name in record} - {"kind"})
    return {name: [float(record.get(name, float("nan"))) for record in records] for name in names}
