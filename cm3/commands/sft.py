"""`cm3 sft train | preview | data check`: instruction tuning."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3.commands.output import AsJson, Overrides, emit

app = typer.Typer(no_args_is_help=True)
data_app = typer.Typer(no_args_is_help=True)
app.add_typer(data_app, name="data", help="Look at data before training on it.")


@app.command("train")
def train(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file: model, out, mixture, train …")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Tune a model on a mixture of tasks (many GPUs: accelerate launch -m sft.train RUN.toml)."""
    from cm3.core.runfile import read_run, validate

    values = read_run(run_file, overrides or [])
    from sft.train import SFTConfig  # takes seconds
    from sft.train import train as run

    out = run(validate(SFTConfig, values, str(run_file)))
    emit({"out": out}, str(out), as_json)


@app.command("preview")
def preview(
    data: Annotated[str, typer.Argument(help="Training data in the task's format.")],
    task: Annotated[str, typer.Option(help="A task (`cm3 list tasks`).")],
    count: Annotated[int, typer.Option("-n", min=1, help="How many examples.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the wording.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show what a task makes of data: its turns, and which of them are trained."""
    from cm3.core.seeding import numpy_generator
    from cm3.documents.document import TextSegment
    from sft.formats import read_format
    from sft.tasks import make_task

    chosen = make_task(task)
    examples: list[dict[str, Any]] = []
    for index, document in enumerate(islice(read_format(data, chosen.data_format), count)):
        turns = chosen.turns(document, numpy_generator(seed, "preview", index))
        shown = [
            {
                "role": turn.role,
                "trained": turn.train,
                "content": [segment.text if isinstance(segment, TextSegment) else "<image>" for segment in turn.segments],
            }
            for turn in turns
        ]
        examples.append({"id": document.id, "turns": shown})
    lines = []
    for example in examples:
        lines.append(example["id"])
        for turn in example["turns"]:
            lines.append(f"  {turn['role']}{' *' if turn['trained'] else ''}: {' | '.join(turn['content'])}")
    emit(examples, "\n".join([*lines, "(* trained)"]), as_json)


@data_app.command("check")
def check(
    data: Annotated[str, typer.Argument(help="The data to look at.")],
    format: Annotated[str, typer.Option(help="Its format (`cm3 list formats`).")],
    as_json: AsJson = False,
) -> None:
    """Read data as training would and report every record that would be rejected, with file, line and field."""
    from sft.formats import check as run

    found = run(data, format)
    lines = [f"{problem['file']}:{problem['line']}: {problem['field']}: {problem['message']}" for problem in found["problems"]]
    rejected = ", ".join(f"{reason} {count}" for reason, count in found["rejected"].items()) or "none"
    emit(found, "\n".join([*lines, f"{found['ok']} records are fine; rejected: {rejected}"]), as_json)
    if found["rejected"]:
        raise typer.Exit(1)
