"""`cm3 retrieval …`: train an encoder, build and change memory banks, search them, measure and check them.

train-encoder                              pictures with texts → an encoder
build | add | remove | merge               documents → a memory bank, and what changes one
search | neighbors                         ask it: one query, or every document of a training set
eval | info | verify                       how good it is, what it holds, whether it is whole
import | export                            the layout of clip-retrieval (npy embeddings, parquet metadata)
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3.commands.output import AsJson, Overrides, emit, table
from cm3.core.errors import InputError, UsageError

if TYPE_CHECKING:
    from retrieval.config import BuildConfig
    from retrieval.plan import BuiltBank

app = typer.Typer(no_args_is_help=True)

Data = Annotated[str, typer.Argument(help="Documents: a folder, WebDataset, JSONL, or pictures with an index table.")]
Memory = Annotated[Path, typer.Argument(help="A memory bank, or a model folder that has one.")]
Index = Annotated[str, typer.Option(help="Index (`cm3 list indexes`), or `auto` for the rule in docs/retrieval.md.")]
MemoryLimit = Annotated[float | None, typer.Option(min=0, help="GiB that building and searching the index may take.")]
MinRecall = Annotated[float, typer.Option(min=0, max=1, help="Refuse an index that finds less of what an exact search finds.")]


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
    data: Data,
    out: Annotated[Path, typer.Argument(help="Folder for the memory bank.")],
    encoder: Annotated[
        str | None, typer.Option(help="Encoder folder, or `hashing`; without it OUT/../encoder, else one is trained on DATA.")
    ] = None,
    index: Index = "auto",
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    as_json: AsJson = False,
) -> None:
    """Build a memory bank that can be searched by text, by picture, or by both.

    An interrupted build is continued by the same command. Whoever searches an older bank at OUT keeps it while the new
    one is built and published.
    """
    import retrieval
    from cm3.documents.report import ReadReport

    report = ReadReport()
    built = retrieval.build(data, out, encoder=encoder, config=_config(index, memory_limit, min_recall), report=report)
    _emit_built(built, as_json, {"rejected": report.rejected})


@app.command("add")
def add(
    memory: Memory,
    data: Data,
    index: Index = "auto",
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    as_json: AsJson = False,
) -> None:
    """Add documents to a memory bank, encoded by the encoder it was built with; ids that it has already are refused."""
    import retrieval
    from cm3.documents.report import ReadReport

    report, config = ReadReport(), _config(index, memory_limit, min_recall)
    _emit_built(retrieval.add(memory, data, config, report), as_json, {"rejected": report.rejected, "read": report.ok})


@app.command("remove")
def remove(
    memory: Memory,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the documents to remove.")] = None,
    from_file: Annotated[Path | None, typer.Option(help="Also remove the ids in this file, one per line.")] = None,
    index: Index = "auto",
    min_recall: MinRecall = 0.95,
    as_json: AsJson = False,
) -> None:
    """Remove documents from a memory bank by their ids; the others keep their order."""
    import retrieval

    named = [*(ids or []), *(_lines(from_file) if from_file is not None else [])]
    if not named:
        raise UsageError("there are no ids to remove; name them, or give a file of them with --from-file")
    _emit_built(retrieval.remove(memory, named, _config(index, None, min_recall)), as_json, {"removed": len(set(named))})


@app.command("merge")
def merge(
    memories: Annotated[list[Path], typer.Argument(metavar="MEMORY...", help="Memory banks of one encoder.")],
    out: Annotated[Path, typer.Option(help="Folder for the memory bank of all their documents.")],
    index: Index = "auto",
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    as_json: AsJson = False,
) -> None:
    """Merge memory banks into one, without encoding anything again."""
    import retrieval

    _emit_built(retrieval.merge(memories, out, _config(index, memory_limit, min_recall)), as_json, {"merged": len(memories)})


@app.command("shards")
def shards(
    data: Annotated[
        str, typer.Argument(help="Documents; a folder of tars, or a pattern like `data/{000..999}.tar`, is shared out.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the banks (OUT/shards), accounts and logs.")],
    encoder: Annotated[str, typer.Option(help="Encoder folder that every machine sees, or `hashing`.")],
    tasks: Annotated[int, typer.Option(min=1, help="How many banks to build.")],
    workers: Annotated[int, typer.Option(min=1, help="How many at a time.")] = 1,
    engine: Annotated[str, typer.Option(help="What runs the tasks: `local` processes or `ray`.")] = "local",
    index: Index = "auto",
    min_recall: MinRecall = 0.95,
    as_json: AsJson = False,
) -> None:
    """Build many memory banks of shares of a source, on many cores or machines (extra `scale`); the same command goes on.

    Search them together (`cm3 retrieval search OUT/shards/*`) or make them one (`cm3 retrieval merge OUT/shards/* --out MEMORY`).
    """
    import retrieval

    made = retrieval.build_shards(data, out, encoder, tasks, workers, engine, index=index, min_recall=min_recall)
    emit({"path": out, "shards": made}, f"{out}: {len(made)} banks in {out / 'shards'}", as_json)


@app.command("search")
def search(
    memories: Annotated[list[Path], typer.Argument(metavar="MEMORY...", help="Memory banks, or model folders that have one.")],
    text: Annotated[str | None, typer.Option(help="What to look for, in words.")] = None,
    image: Annotated[Path | None, typer.Option(help="What to look for, as a picture.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many documents.")] = 4,
    pictures: Annotated[Path | None, typer.Option(help="Write the pictures found into this folder.")] = None,
    grid: Annotated[Path | None, typer.Option(help="Also write one PNG with all pictures found.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the documents nearest to a text, a picture, or both, in one memory bank or in several at once."""
    import retrieval
    from cm3.core.storage import write_bytes
    from cm3.documents.images import decode_image
    from retrieval.results import picture_grid, search_records, search_table

    bank = retrieval.open_banks([_bank(memory) for memory in memories])
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
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Neighbors per document.")] = 2,
    recipe: Annotated[str, typer.Option(help="How neighbors are chosen: `cm3leon` or `ra_cm3`.")] = "cm3leon",
    seed: Annotated[int, typer.Option(min=0, help="Of the words and picture parts that a query leaves out.")] = 0,
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
    made = retrieval.write_neighbors(retrieval.open(_bank(memory)), data, out, k, recipes[recipe](seed), report)
    text = f"{out}: {made.count} documents, {made.complete:.1%} of them with {k} neighbors"
    emit({**vars(made), "rejected": report.rejected}, text, as_json)


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
def info(memory: Memory, as_json: AsJson = False) -> None:
    """Show what a memory bank holds: documents, index, measured recall, encoder."""
    import retrieval

    bank = retrieval.open(_bank(memory))
    value = {**bank.info.model_dump(mode="json"), "generation": bank.folder.name}
    emit(value, _figures(value), as_json)


@app.command("verify")
def verify(memory: Memory, as_json: AsJson = False) -> None:
    """Check a memory bank: every byte, every document and every vector (exit code 4 when something is wrong)."""
    import retrieval

    value = retrieval.check_bank(_bank(memory))
    emit(value, f"{memory}: {value['documents']} documents, all as they were written ({value['generation']})", as_json)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A folder as `clip inference` writes it: img_emb, text_emb, metadata.")],
    out: Annotated[Path, typer.Argument(help="Folder for the memory bank.")],
    encoder: Annotated[str, typer.Option(help="The encoder that made the embeddings: a folder, or a name on the hub.")],
    pictures: Annotated[Path | None, typer.Option(help="Where the paths in the metadata start; without it SOURCE.")] = None,
    index: Index = "auto",
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    as_json: AsJson = False,
) -> None:
    """Make a memory bank of embeddings in the layout of clip-retrieval; those of another encoder are refused."""
    import retrieval

    config = _config(index, memory_limit, min_recall)
    _emit_built(retrieval.import_clip_retrieval(source, out, encoder, config, pictures), as_json, {"source": source})


@app.command("export")
def export(
    memory: Memory,
    out: Annotated[Path, typer.Argument(help="Folder for embeddings, metadata and pictures.")],
    as_json: AsJson = False,
) -> None:
    """Write a memory bank in the layout of clip-retrieval (npy embeddings, parquet metadata, pictures)."""
    import retrieval

    bank = retrieval.open(_bank(memory))
    emit({"path": retrieval.write_clip_retrieval(bank, out), "count": len(bank)}, f"{out}: {len(bank)} documents", as_json)


def _bank(memory: Path) -> Path:
    inside = memory / "memory"
    return inside if inside.is_dir() else memory


def _config(index: str, memory_limit: float | None, min_recall: float) -> BuildConfig:
    import retrieval

    return retrieval.BuildConfig(index=index, memory_limit_gib=memory_limit, min_recall=min_recall)


def _emit_built(built: BuiltBank, as_json: bool, account: Mapping[str, Any]) -> None:
    text = f"{built.path}: {built.count} documents, {built.index} index, recall {built.recall:.3f}"
    emit({**vars(built), **account}, text, as_json)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a list of ids: {error}; give a text file with one id per line") from None


def _figures(values: Mapping[str, Any]) -> str:
    return table([{"figure": name, "value": value} for name, value in values.items()])
