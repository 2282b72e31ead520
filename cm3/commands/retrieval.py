"""`cm3 retrieval train-encoder | build | search | eval | info`: memory banks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3.commands.output import AsJson, Overrides, emit, table
from cm3.core.errors import UsageError

app = typer.Typer(no_args_is_help=True)


@app.command("train-encoder")
def train_encoder(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file: data, out, preset, train …")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train a CLIP encoder from scratch on pictures with texts."""
    import retrieval
    from cm3.core.runfile import load_run

    config = load_run(retrieval.TrainEncoderConfig, run_file, overrides or [])
    if config.data is None or config.out is None:
        raise UsageError(f"{run_file} needs both `data` and `out`; add them or pass data=FOLDER out=FOLDER")
    trained = retrieval.train_encoder(config=config)
    emit({"out": config.out, **trained.metrics}, f"{config.out}\n{_figures(trained.metrics)}", as_json)


@app.command("build")
def build(
    data: Annotated[str, typer.Argument(help="Documents: a folder, WebDataset, JSONL, or pictures with an index table.")],
    out: Annotated[Path, typer.Argument(help="Folder for the memory bank.")],
    encoder: Annotated[
        str | None, typer.Option(help="Encoder folder, or `hashing`; without it OUT/../encoder, else one is trained on DATA.")
    ] = None,
    index: Annotated[str, typer.Option(help="Index (`cm3 list indexes`), or `auto` for the documented rule.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Build a memory bank that can be searched by text, by picture, or by both."""
    import retrieval
    from cm3.documents.report import ReadReport

    report = ReadReport()
    built = retrieval.build(data, out, encoder=encoder, config=retrieval.BuildConfig(index=index), report=report)
    value = {**vars(built), "rejected": report.rejected}
    emit(value, f"{out}: {built.count} documents, {built.index} index, recall {built.recall:.3f}", as_json)


@app.command("search")
def search(
    memory: Annotated[Path, typer.Argument(help="A memory bank, or a model folder that has one.")],
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option(help="What to look for, as a picture.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many documents.")] = 4,
    pictures: Annotated[Path | None, typer.Option(help="Write the pictures found into this folder.")] = None,
    grid: Annotated[Path | None, typer.Option(help="Also write one PNG with all pictures found.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the documents nearest to a text, a picture, or both."""
    import retrieval
    from cm3.core.storage import write_bytes
    from cm3.documents.images import decode_image
    from retrieval.results import picture_grid, search_records, search_table

    inside = memory / "memory"
    bank = retrieval.open(inside if inside.is_dir() else memory)
    picture = None if image is None else decode_image(image)
    neighbors = bank.search(text=text, image=picture, k=k)
    if grid is not None:
        picture_grid(neighbors).save(encoded := io.BytesIO(), "PNG")
        write_bytes(grid, encoded.getvalue())
    emit(search_records(neighbors, pictures), search_table(neighbors), as_json)


@app.command("eval")
def evaluate(
    encoder: Annotated[Path, typer.Argument(help="An encoder folder or a memory bank.")],
    data: Annotated[str, typer.Argument(help="Held-out pairs of picture and text.")],
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="At most so many pairs.")] = 256,
    as_json: AsJson = False,
) -> None:
    """Measure an encoder (recall of pictures by text and of texts by picture, beside chance) or a memory bank."""
    import retrieval
    from cm3.documents.report import ReadReport

    report = ReadReport()
    figures = retrieval.evaluate(encoder, data, limit, report)
    report.check()
    emit(figures, _figures(figures), as_json)


@app.command("info")
def info(memory: Annotated[Path, typer.Argument(help="A memory bank.")], as_json: AsJson = False) -> None:
    """Show what a memory bank holds: documents, index, measured recall, encoder."""
    import retrieval

    value = retrieval.open(memory).info.model_dump(mode="json")
    emit(value, _figures(value), as_json)


def _figures(values: Mapping[str, Any]) -> str:
    return table([{"figure": name, "value": value} for name, value in values.items()])
