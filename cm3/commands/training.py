"""`cm3 quickstart`, `cm3 tokenize`, `cm3 train`, `cm3 eval`: from data to a model, and how good it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cm3.commands.output import AsJson, Overrides, emit, say, table
from cm3.core.errors import UsageError
from cm3.core.storage import sibling

TEXT_VOCAB_SIZE = 4096


def quickstart(
    out: Annotated[Path, typer.Option(help="Where everything goes: data, stages, model, report.")] = Path("quickstart"),
    minutes: Annotated[float, typer.Option(help="Budget for all stages on two quiet cores; training scales with it.")] = 15.0,
    data: Annotated[Path | None, typer.Option(help="Your pictures with texts; without it, the embedded world.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train every stage, evaluate, and write OUT/index.html (the report) and OUT/model/ (the model).

    DATA is a folder of pictures with .txt files beside them, a WebDataset, a JSONL file, or pictures with an index table.
    A stage whose result stands is skipped, so the same command goes on after an interruption.
    """
    from cm3.quickstart import QuickstartConfig, run_quickstart

    if not 0 < minutes <= 24 * 60:
        raise UsageError(f"--minutes is {minutes:g}, expected a number above 0 and up to 1440")
    result = run_quickstart(QuickstartConfig(out=out, minutes=minutes, data=data, seed=seed), say)
    lines = [f"report  {out / 'index.html'}", f"model   {out / 'model'}", f"figures {out / 'result.json'}"]
    emit(result, "\n".join(lines), as_json)


def tokenize(
    data: Annotated[str, typer.Argument(help="Documents: a folder, WebDataset, JSONL, or pictures with an index table.")],
    out: Annotated[Path, typer.Argument(help="Folder for the token shards.")],
    image_tokenizer: Annotated[Path, typer.Option(help="The image tokenizer (`cm3 vqgan train`).")],
    tokenizer: Annotated[Path | None, typer.Option(help="Its document tokenizer; by default a new one at OUT-tokenizer.")] = None,
    text_vocab_size: Annotated[
        int | None, typer.Option(help="Most text ids of a new document tokenizer.", show_default=str(TEXT_VOCAB_SIZE))
    ] = None,
    budget: Annotated[float, typer.Option(help="Share of records that may be rejected.")] = 0.01,
    workers: Annotated[int, typer.Option(min=0, help="Processes that encode; 0 takes one per core.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Turn documents into token shards to train on; every record is accounted for.

    The shards are the same bytes for any number of workers. After an interruption the same command goes on: what is finished
    lies in OUT-parts until the shards are whole; with other documents, image tokenizer or sizes it is made anew. Across
    machines: `cm3.tokenize.scale` (docs/training.md).
    """
    from cm3.tokenize import own_tokenizer
    from cm3.tokenize import tokenize as run

    if not 0 <= budget <= 1:
        raise UsageError(f"--budget is {budget:g}, expected a share between 0 and 1")
    if tokenizer is not None and text_vocab_size is not None:
        raise UsageError("--text-vocab-size is of a new document tokenizer, --tokenizer gives one; leave out one of them")
    if tokenizer is None:
        tokenizer = sibling(out, suffix="-tokenizer")
        own_tokenizer(data, image_tokenizer, tokenizer, TEXT_VOCAB_SIZE if text_vocab_size is None else text_vocab_size)
    account = run(data, tokenizer, image_tokenizer, out, budget=budget, workers=workers)
    text = f"{out}: {account['tokens']:,} tokens of {account['ok']:,} documents ({account['seen'] - account['ok']} rejected)"
    emit({"out": str(out), "tokenizer": str(tokenizer), **account}, f"{text}\ntokenizer {tokenizer}", as_json)


def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file; see docs/formats.md.")],
    overrides: Overrides = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Compute a step that went wrong again, from RUN/nonfinite-step-….json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pretrain a token model as RUN.toml says (many GPUs: accelerate launch -m cm3.pretrain RUN.toml)."""
    from cm3.core.runfile import read_run, validate

    values = read_run(run_file, overrides or [])
    from cm3.pretrain.run import PretrainConfig, pretrain, replay_step  # takes seconds

    config = validate(PretrainConfig, values, str(run_file))
    if replay is not None:
        replayed = replay_step(config, replay)
        emit(replayed.figures(), replayed.says(), as_json)
        return
    sample = None
    if config.sample_with is not None:
        if config.held_out is None:
            raise UsageError("sample_with draws pictures for held-out texts; set held_out too")
        from cm3.samples import PictureSampler

        sample = partial(PictureSampler, config.held_out, config.sample_with)
    result = pretrain(config, sample)
    last = {name: value for name, value in result.history[-1].items() if name != "kind"} if result.history else {}
    value = {"out": str(config.out), "steps": result.step, "seconds": result.seconds, "last": last}
    emit(value, f"{config.out}: {result.step} steps in {result.seconds:.0f} s", as_json)


def evaluate(
    model: Annotated[Path, typer.Argument(help="A model folder.")],
    data: Annotated[Path, typer.Argument(help="Held-out data of the embedded world, in the task's format.")],
    task: Annotated[str, typer.Option(help="text_to_image, captioning, vqa, editing or infilling (`cm3 list tasks`).")],
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="At most so many documents.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawing.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a model on held-out documents: accuracy with its 95 % interval, beside chance and the tokenizer's ceiling."""
    from cm3.quickstart.evaluation import evaluate_command

    scores = evaluate_command(model, data, task, limit, seed)
    rows = [{"task": name, **vars(score)} for name, score in scores.items()]
    emit({row["task"]: {k: v for k, v in row.items() if k != "task"} for row in rows}, table(rows), as_json)
