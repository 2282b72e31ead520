"""The road: every stage from data to a model, each through the public function a user would call for it alone.

    data ─► image_tokenizer ─► encoder ─► memory ─► document_tokenizer ─► tokens ─► neighbors ─► pretrained ─► tuned ─► model

On the embedded world all five tasks are tuned; on a user's pictures with texts, those that such data allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cm3.core import artefact
from cm3.core.errors import InputError, UsageError
from cm3.core.runfile import RunConfig
from cm3.quickstart.config import QuickstartConfig
from cm3.quickstart.settings import NUM_NEIGHBORS, Places, Settings
from cm3.quickstart.stages import Stage

MIN_PAIRS = 16
TEXT_DOCUMENTS = 1000  # of each task, to train the text tokenizer on
HELD_OUT_FRACTION = 0.1


def stages_of(config: QuickstartConfig, settings: Settings, places: Places) -> list[Stage]:
    """All stages in order, from data to the model folder."""
    return [
        _data_stage(config, settings, places),
        *_codes_and_memory(settings, places),
        *_tokens(config, settings, places),
        *_model(settings, places),
    ]


def _stage(out: Path, inputs: Sequence[Path], settings: Any, make: Callable[[], Any], description: str) -> Stage:
    """A stage named after the folder it makes."""
    values = settings.model_dump(mode="json") if isinstance(settings, RunConfig) else settings
    return Stage(out.name, out, inputs, values, make, description)


def _codes_and_memory(settings: Settings, places: Places) -> list[Stage]:
    return [
        _stage(
            places.image_tokenizer,
            [places.data],
            settings.image_tokenizer,
            lambda: make_image_tokenizer(settings, places),
            "train the tokenizer that turns pictures into codes",
        ),
        _stage(
            places.encoder,
            [places.data],
            settings.encoder,
            lambda: make_encoder(settings, places),
            "train a CLIP encoder for retrieval and reranking",
        ),
        _stage(
            places.memory,
            [places.data, places.encoder],
            settings.memory,
            lambda: make_memory(settings, places),
            "build the memory bank of training documents",
        ),
    ]


def _tokens(config: QuickstartConfig, settings: Settings, places: Places) -> list[Stage]:
    tokenizers = [places.document_tokenizer, places.image_tokenizer]
    return [
        _stage(
            places.document_tokenizer,
            [places.data, places.image_tokenizer],
            settings.text_vocab_size,
            lambda: make_document_tokenizer(settings, places),
            "train the text tokenizer and join it with the image codes",
        ),
        _stage(
            places.tokens,
            [places.data, *tokenizers],
            "pairs/train",
            lambda: make_tokens(places.pairs, places, places.tokens, config),
            "turn the training documents into token shards",
        ),
        _stage(
            places.held_out_tokens,
            [places.data, *tokenizers],
            "pairs/test",
            lambda: make_tokens(places.held_out_pairs, places, places.held_out_tokens, config),
            "turn the held-out documents into token shards",
        ),
        _stage(
            places.neighbors,
            [places.data, places.memory],
            {"k": NUM_NEIGHBORS, "seed": config.seed},
            lambda: make_neighbors(places, config.seed),
            "find every training document's neighbors",
        ),
    ]


def _model(settings: Settings, places: Places) -> list[Stage]:
    return [
        _stage(
            places.pretrained,
            [places.tokens, places.held_out_tokens, places.neighbors, places.document_tokenizer],
            settings.pretraining,
            lambda: make_pretrained(settings),
            "pretrain the transformer with the CM3 objective",
        ),
        _stage(
            places.tuned,
            [places.pretrained, places.data, places.image_tokenizer],
            settings.tuning,
            lambda: make_tuned(settings),
            "tune it on the tasks: " + ", ".join(entry.task for entry in settings.tuning.mixture),
        ),
        _stage(
            places.model,
            [places.tuned, places.image_tokenizer, places.encoder, places.memory],
            "model folder",
            lambda: make_model(places),
            "put the parts together as a model folder",
        ),
    ]


def _data_stage(config: QuickstartConfig, settings: Settings, places: Places) -> Stage:
    if config.data is None:
        values = {"world": settings.world.model_dump(mode="json"), "train": settings.num_train, "held_out": settings.num_held_out}
        return Stage(
            "data",
            places.data,
            [],
            {**values, "seed": config.seed},
            lambda: make_scenes(settings, places, config.seed),
            "draw the embedded world: pictures, captions, questions, edits",
        )
    require_apart(config.data, places.out)
    return Stage(
        "data",
        places.data,
        [],
        {"source": str(config.data.absolute()), "state": source_state(config.data), "seed": config.seed},
        lambda: make_pairs(config, settings, places),
        f"read the pictures and texts of {config.data}",
    )


def make_scenes(settings: Settings, places: Places, seed: int) -> None:
    """Write the embedded world as WebDataset shards."""
    from cm3.scenes.dataset import write_world

    with artefact.writing(places.data, "dataset", {"source": "cm3.scenes", "seed": seed}) as folder:
        write_world(folder, settings.world, settings.num_train, settings.num_held_out, seed)


def make_pairs(config: QuickstartConfig, settings: Settings, places: Places) -> None:
    """Read the user's pairs, account for every record, hold some out by their ids, write them as WebDataset shards."""
    from cm3.documents.readers import read_documents
    from cm3.documents.records import ReadOptions
    from cm3.documents.report import ReadReport
    from cm3.documents.split import split_documents
    from cm3.documents.writers import write_documents

    report = ReadReport()
    options = ReadOptions(require_text=True, require_image=True)
    documents = list(read_documents(str(config.data), report=report, options=options))
    report.check()
    train, held_out = split_documents(documents, HELD_OUT_FRACTION, config.seed)
    if len(documents) < MIN_PAIRS or len(held_out) < 2:
        raise InputError(
            f"{config.data} holds {len(documents)} usable pairs of picture and text, at least {MIN_PAIRS} are needed; "
            "give more pictures with texts"
        )
    validation, test = held_out[: len(held_out) // 2][: settings.num_held_out], held_out[len(held_out) // 2 :]
    with artefact.writing(places.data, "dataset", {"source": str(config.data), "seed": config.seed}) as folder:
        for name, part in {"train": train, "validation": validation, "test": test[: settings.num_held_out]}.items():
            write_documents(iter(part), folder / "pairs" / name)
        artefact.write_json(folder / "reading.json", report.to_json())


def require_apart(source: Path, out: Path) -> None:
    """Raise `UsageError` when results and data would share one folder; a folder of results below the data is passed over."""
    if source.is_dir() and out.resolve() == source.resolve():
        raise UsageError(f"--out {out} is the folder of --data; choose another one")


def source_state(source: Path) -> list[list[Any]]:
    """Names, sizes and times of the files of a source: changes when they do. Raises `InputError` when there is nothing."""
    from cm3.documents.readers.folder import walk

    if not source.exists():
        raise InputError(f"--data {source} does not exist; give a folder, a tar or a JSONL file")
    files = [source / name for name in walk(source)] if source.is_dir() else [source]
    return [[str(file.relative_to(source.parent)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def make_image_tokenizer(settings: Settings, places: Places) -> None:
    """Train the image tokenizer on the training pictures."""
    import vqgan

    vqgan.train(settings.image_tokenizer.model_copy(update={"data": str(places.pairs)}), places.image_tokenizer)


def make_encoder(settings: Settings, places: Places) -> None:
    """Train the encoder on the training pairs."""
    import retrieval

    retrieval.train_encoder(places.pairs, places.encoder, settings.encoder, run_dir=places.run_of(places.encoder))


def make_memory(settings: Settings, places: Places) -> None:
    """Build the memory bank of training documents."""
    import retrieval

    retrieval.build(places.pairs, places.memory, encoder=places.encoder, config=settings.memory)


def make_document_tokenizer(settings: Settings, places: Places) -> None:
    """Train the text tokenizer on every text a task will use."""
    from cm3.tokenize import train_document_tokenizer

    train_document_tokenizer(_texts(settings), places.image_tokenizer, places.document_tokenizer, settings.text_vocab_size)


def _texts(settings: Settings) -> Any:
    """The documents of all tasks, as turns show them to the model, without pictures."""
    from cm3.core.seeding import numpy_generator
    from cm3.documents.document import Document, TextSegment
    from sft.formats import read_format

    for entry in settings.tuning.mixture:
        task = entry.make_task()
        rng = numpy_generator("texts", entry.task)
        for document in islice(read_format(entry.data, entry.format or task.data_format), TEXT_DOCUMENTS):
            segments = [segment for turn in task.turns(document, rng) for segment in turn.segments]
            yield Document(document.id, tuple(segment for segment in segments if isinstance(segment, TextSegment)))


def make_tokens(source: Path, places: Places, out: Path, config: QuickstartConfig) -> None:
    """Tokenize the pairs of `source`; scenes in this process, since a second one takes longer to start than it saves."""
    from cm3.tokenize import tokenize

    tokenize(source, places.document_tokenizer, places.image_tokenizer, out, workers=1 if config.data is None else 0)


def make_neighbors(places: Places, seed: int) -> None:
    """For every training document the indices of its neighbors among the training documents."""
    import retrieval

    config = retrieval.RetrieverConfig.cm3leon(seed)
    retrieval.write_neighbors(retrieval.open(places.memory), places.pairs, places.neighbors, NUM_NEIGHBORS, config)


def make_pretrained(settings: Settings) -> None:
    """Pretrain the token model."""
    from cm3.pretrain.run import pretrain

    pretrain(settings.pretraining)


def make_tuned(settings: Settings) -> None:
    """Tune the pretrained model on the tasks."""
    from sft.train import train

    train(settings.tuning)


def make_model(places: Places) -> None:
    """Assemble the model folder."""
    from cm3.model_folder import Parts, assemble_model_folder
    from cm3.pretrain.run import load_language_model
    from sft.tasks import TASKS_FILE

    model, tokenizer = load_language_model(places.tuned)
    tasks = {TASKS_FILE: artefact.read_json(places.tuned / TASKS_FILE)}
    assemble_model_folder(
        places.model, model, tokenizer, Parts(places.image_tokenizer, places.encoder, places.memory), json_files=tasks
    )
