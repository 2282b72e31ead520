"""`cm3 retrieval …`: train an encoder, build and change memory banks, search them, measure and check them.

train-encoder                              pictures with texts → an encoder
build | add | remove | merge | shards      documents → a memory bank, and what changes one (`cm3.commands.memory`)
search | neighbors                         ask it: one query, or every document of a training set
eval | info | verify                       how good it is, what it holds, whether it is whole
import | export                            the layout of clip-retrieval (npy embeddings, parquet metadata)
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cm3.commands import memory as changes
from cm3.commands.memory import Data, Memory, Unverified, inner_bank
from cm3.commands.output import AsJson, Overrides, account_of, emit, rejections, table
from cm3.core.errors import UsageError

Device = Annotated[str, typer.Option(help="Where the encoder runs and an exact index is searched: cpu, cuda.")]

app = typer.Typer(no_args_is_help=True)

app.command("build")(changes.build)
app.command("add")(changes.add)
app.command("remove")(changes.remove)
app.command("merge")(changes.merge)
app.command("shards")(changes.shards)
app.command("import")(changes.import_)
app.command("export")(changes.export)


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


@app.command("search")
def search(
    memories: Annotated[list[Path], typer.Argument(metavar="MEMORY...", help="Memory banks, or model folders that have one.")],
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option(help="What to look for, as a picture.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many documents.")] = 4,
    pictures: Annotated[Path | None, typer.Option(help="Write the pictures found into this folder.")] = None,
    grid: Annotated[Path | None, typer.Option(help="Also write one PNG with all pictures found.")] = None,
    device: Device = "cpu",
    unverified: Unverified = False,
    as_json: AsJson = False,
) -> None:
    """Find the documents nearest to a text, a picture, or both, in one memory bank or in several at once."""
    import retrieval
    from cm3.core.storage import write_bytes
    from cm3.documents.images import decode_image
    from retrieval.results import picture_grid, search_records, search_table

    bank = retrieval.open_banks([inner_bank(memory) for memory in memories], not unverified, device)
    picture = None if image is None else decode_image(image)
    neighbors = bank.search(text=text, image=picture, k=k)
    if grid is not None:
        picture_grid(neighbors).save(encoded := io.BytesIO(), "PNG")
        write_bytes(grid, encoded.getvalue())
    emit(search_records(neighbors, pictures), search_table(neighbors), as_json)


@app.command("neighbors")
def neighbors(
    memory: Memory,
    data: Data,
    out: Annotated[Path, typer.Argument(help="Folder for the table of neighbors.")],
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Neighbors per document; training draws from them.")] = 4,
    recipe: Annotated[str, typer.Option(help="How neighbors are chosen: `cm3leon` or `ra_cm3`.")] = "cm3leon",
    seed: Annotated[int, typer.Option(min=0, help="Of the words and picture parts that a query leaves out.")] = 0,
    device: Device = "cpu",
    unverified: Unverified = False,
    as_json: AsJson = False,
) -> None:
    """Find the neighbors of every document of a training set, as pretraining with retrieval reads them.

    Never the document itself, an exact duplicate of it, or anything more than 0.9 similar to it.
    """
    import retrieval
    from cm3.core.registry import nearest
    from cm3.documents.report import ReadReport

    recipes = {"cm3leon": retrieval.RetrieverConfig.cm3leon, "ra_cm3": retrieval.RetrieverConfig.ra_cm3}
    if recipe not in recipes:
        raise UsageError(f"unknown recipe {recipe!r}; {nearest(recipe, list(recipes))}")
    report = ReadReport()
    bank = retrieval.open(inner_bank(memory), verified=not unverified, device=device)
    made = retrieval.write_neighbors(bank, data, out, k, recipes[recipe](seed), report)
    text = f"{out}: {made.count} documents, {made.complete:.1%} of them with {k} neighbors, {rejections(report.rejected)}"
    emit({**vars(made), **account_of(report)}, text, as_json)


@app.command("eval")
def evaluate(
    encoder: Annotated[Path, typer.Argument(help="An encoder folder or a memory bank.")],
    data: Annotated[str, typer.Argument(help="Held-out pairs of picture and text.")],
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, help="At most so many pairs.")] = 256,
    device: Device = "cpu",
    unverified: Unverified = False,
    as_json: AsJson = False,
) -> None:
    """Measure an encoder (recall of pictures by text and of texts by picture, beside chance) or a memory bank."""
    import retrieval
    from cm3.documents.report import ReadReport

    report = ReadReport()
    figures = retrieval.evaluate(encoder, data, limit, report, not unverified, device)
    report.check()
    emit(figures, _figures(figures), as_json)


@app.command("info")
def info(memory: Memory, unverified: Unverified = False, as_json: AsJson = False) -> None:
    """Show what a memory bank holds: documents, index, measured recall, encoder."""
    import retrieval

    bank = retrieval.open(inner_bank(memory), verified=not unverified)
    value = {**bank.info.model_dump(mode="json"), "generation": bank.folder.name}
    emit(value, _figures(value), as_json)


@app.command("verify")
def verify(memory: Memory, as_json: AsJson = False) -> None:
    """Check a memory bank: every byte, every document and every vector (exit code 4 when something is wrong)."""
    import retrieval

    value = retrieval.check_bank(inner_bank(memory))
    emit(value, f"{memory}: {value['documents']} documents, all as they were written ({value['generation']})", as_json)


def _figures(values: Mapping[str, Any]) -> str:
    return table([{"figure": name, "value": value} for name, value in values.items()])
