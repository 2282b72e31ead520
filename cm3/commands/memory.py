"""Commands that make and change memory banks: build, add, remove, merge, shards, import, export; see `cm3.commands.retrieval`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3.commands.output import AsJson, Budget, account_of, emit, rejections
from cm3.core.errors import InputError, UsageError
from cm3.core.runfile import validate

if TYPE_CHECKING:
    from retrieval.config import BuildConfig
    from retrieval.plan import BuiltBank

Data = Annotated[str, typer.Argument(help="Documents: a folder, WebDataset, JSONL, or pictures with an index table.")]
Memory = Annotated[Path, typer.Argument(help="A memory bank, or a model folder that has one.")]
Changed = Annotated[Path, typer.Argument(metavar="MEMORY", help="A memory bank; one inside a model folder cannot be changed.")]
Index = Annotated[str, typer.Option(help="Index (`cm3 list indexes`), or `auto` for the rule in docs/retrieval.md.")]
Unverified = Annotated[
    bool,
    typer.Option(
        "--unverified", help="Check names and sizes of the memory's files, not their hashes: starts at once, misses flipped bits."
    ),
]
MemoryLimit = Annotated[float | None, typer.Option(min=0, help="GiB that building and searching an index may take.")]
MinRecall = Annotated[float, typer.Option(min=0, max=1, help="Refuse an index that finds less of what an exact search finds.")]
Device = Annotated[str, typer.Option(help="Where the encoder runs: cpu, cuda.")]


def build(
    data: Data,
    out: Annotated[Path, typer.Argument(help="Folder for the memory bank.")],
    encoder: Annotated[
        str | None, typer.Option(help="Encoder folder, or `hashing`; without it OUT/../encoder, else one is trained on DATA.")
    ] = None,
    index: Index = "auto",
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    budget: Budget = 0.01,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Build a memory bank that can be searched by text, by picture, or by both.

    An interrupted build is continued by the same command. Whoever searches an older bank at OUT keeps it while the new
    one is built and published.
    """
    import retrieval
    from cm3.documents.report import ReadReport

    report, config = ReadReport(), _config(index, memory_limit, min_recall, device, budget)
    _emit_built(retrieval.build(data, out, encoder, config, report), as_json, account_of(report))


def add(
    memory: Changed,
    data: Data,
    index: Index = "auto",
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    budget: Budget = 0.01,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Add documents to a memory bank, encoded by the encoder it was built with; ids that it has already are refused."""
    import retrieval
    from cm3.documents.report import ReadReport

    report, config = ReadReport(), _config(index, memory_limit, min_recall, device, budget)
    _emit_built(retrieval.add(memory, data, config, report), as_json, account_of(report))


def remove(
    memory: Changed,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the documents to remove.")] = None,
    from_file: Annotated[Path | None, typer.Option(help="Also remove the ids in this file, one per line.")] = None,
    index: Index = "auto",
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Remove documents from a memory bank by their ids; the others keep their order."""
    import retrieval

    named = [*(ids or []), *(_lines(from_file) if from_file is not None else [])]
    if not named:
        raise UsageError("there are no ids to remove; name them, or give a file of them with --from-file")
    config = _config(index, memory_limit, min_recall, device)
    _emit_built(retrieval.remove(memory, named, config), as_json, {"removed": len(set(named))})


def merge(
    memories: Annotated[list[Path], typer.Argument(metavar="MEMORY...", help="Memory banks of one encoder.")],
    out: Annotated[Path, typer.Option(help="Folder for the memory bank of all their documents.")],
    index: Index = "auto",
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Merge memory banks into one, without encoding anything again."""
    import retrieval

    _emit_built(
        retrieval.merge(memories, out, _config(index, memory_limit, min_recall, device)), as_json, {"merged": len(memories)}
    )


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
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    budget: Budget = 0.01,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Build many memory banks of shares of a source, on many cores or machines (extra `scale`); the same command goes on.

    Search them together (`cm3 retrieval search OUT/shards/*`) or make them one (`cm3 retrieval merge OUT/shards/* --out MEMORY`).
    """
    import retrieval

    options = _config(index, memory_limit, min_recall, device, budget).model_dump()
    made = retrieval.build_shards(data, out, encoder, tasks, workers, engine, **options)
    emit({"path": out, "shards": made}, f"{out}: {len(made)} banks in {out / 'shards'}", as_json)


def import_(
    source: Annotated[Path, typer.Argument(help="A folder as `clip inference` writes it: img_emb, text_emb, metadata.")],
    out: Annotated[Path, typer.Argument(help="Folder for the memory bank.")],
    encoder: Annotated[str, typer.Option(help="The encoder that made the embeddings: a folder, or a name on the hub.")],
    pictures: Annotated[Path | None, typer.Option(help="Where the paths in the metadata start; without it SOURCE.")] = None,
    index: Index = "auto",
    memory_limit: MemoryLimit = None,
    min_recall: MinRecall = 0.95,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Make a memory bank of embeddings in the layout of clip-retrieval; those of another encoder are refused."""
    import retrieval

    config = _config(index, memory_limit, min_recall, device)
    _emit_built(retrieval.import_clip_retrieval(source, out, encoder, config, pictures), as_json, {"source": source})


def export(
    memory: Memory,
    out: Annotated[Path, typer.Argument(help="Folder for embeddings, metadata and pictures.")],
    unverified: Unverified = False,
    as_json: AsJson = False,
) -> None:
    """Write a memory bank in the layout of clip-retrieval (npy embeddings, parquet metadata, pictures)."""
    import retrieval

    bank = retrieval.open(inner_bank(memory), verified=not unverified)
    emit({"path": retrieval.write_clip_retrieval(bank, out), "count": len(bank)}, f"{out}: {len(bank)} documents", as_json)


def _config(index: str, memory_limit: float | None, min_recall: float, device: str, budget: float = 0.01) -> BuildConfig:
    import retrieval

    values = {"index": index, "memory_limit_gib": memory_limit, "min_recall": min_recall, "device": device, "budget": budget}
    return validate(retrieval.BuildConfig, values, "the options")


def _emit_built(built: BuiltBank, as_json: bool, account: Mapping[str, Any]) -> None:
    read = f", {rejections(account['rejected'])}" if "rejected" in account else ""
    text = f"{built.path}: {built.count} documents, {built.index} index, recall {built.recall:.3f}{read}"
    emit({**vars(built), **account}, text, as_json)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text("utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as a list of ids: {error}; give a text file with one id per line") from None


def inner_bank(memory: Path) -> Path:
    """The memory bank in a model folder, or `memory` itself."""
    inside = memory / "memory"
    return inside if inside.is_dir() else memory
