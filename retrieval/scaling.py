"""Memory banks beyond one machine: shares of a source, each built as a bank of its own, by an engine that runs many tasks.

    source → task 0 … task n-1, each `build` over its share → OUT/shards/00000 …, OUT/accounts/00000.json
           → searched side by side (`open_banks`), or made one (`merge`)

The engine is datatrove (extra `scale`; github.com/huggingface/datatrove): its executors run tasks as local processes, on Slurm or
on Ray, and write a marker for every completed one, so that running again does what is missing. A task is one call of `ShareTask`,
which any other engine can call as well. What a task does is what `retrieval.build` does on one machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cm3.core.artefact import read_json, storage_errors, write_json
from cm3.core.errors import CM3Error, UsageError
from cm3.core.registry import nearest
from cm3.documents.document import Document
from cm3.documents.readers import read_documents
from cm3.documents.readers.sources import expand_source
from cm3.documents.report import ReadReport
from retrieval.building import build
from retrieval.config import BuildConfig

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class ShareTask:
    """What one task does: build the bank of its share. Called as `task(None, rank, world_size)`, as datatrove calls a step.

    source: as for `read_documents`. Where it names at least as many files (or a folder with as many tars) as there are tasks, a
    task reads its own files; otherwise every task reads all and keeps every world_size-th document.
    """

    source: str
    out: Path
    encoder: str
    config: BuildConfig

    def __call__(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Build OUT/shards/RANK and write OUT/accounts/RANK.json. Raises what `build` raises, `UsageError` for an empty share."""
        self.require_plan(world_size)
        account, files = ReadReport(), _files(self.source)
        by_files = len(files) >= world_size
        documents = _share(files, by_files, rank, world_size, account)
        first = next(documents, None)
        if first is None:
            raise UsageError(f"task {rank} of {world_size} has no documents: there are fewer than tasks; take fewer tasks")
        with storage_errors(self.out):
            (self.out / "accounts").mkdir(parents=True, exist_ok=True)
        built = build(_again(first, documents), self.out / "shards" / f"{rank:05d}", self.encoder, self.config)
        if not by_files and rank > 0:  # it read what the first task counts
            account = ReadReport()
        record = {"seen": account.seen, "ok": account.ok, "rejected": account.rejected, "documents": built.count}
        write_json(self.out / "accounts" / f"{rank:05d}.json", record)

    def require_plan(self, tasks: int) -> None:
        """Write what is built by how many tasks to OUT/plan.json. Raises `UsageError` if something else was begun there."""
        settings = self.config.model_dump(mode="json", exclude={"device", "budget"})  # neither changes what a task builds
        plan = {"source": self.source, "encoder": self.encoder, "tasks": tasks, **settings}
        file = self.out / "plan.json"
        if not file.is_file():
            with storage_errors(self.out):
                self.out.mkdir(parents=True, exist_ok=True)
            write_json(file, plan)
        begun = read_json(file)
        for name in plan:
            if begun.get(name) != plan[name]:
                raise UsageError(
                    f"{self.out} was begun with {name} {begun.get(name)!r}, now it is {plan[name]!r}: shards of both would be "
                    "mixed; take the same setting, or another folder"
                )


def build_shards(
    source: Path | str, out: Path | str, encoder: Path | str, tasks: int, workers: int = 1, engine: str = "local", **options: Any
) -> list[Path]:
    """Build `tasks` banks of `source` below `out` by `workers` at a time and return their folders; completed ones are not redone.

    encoder: an encoder folder that every machine sees, or "hashing". engine: "local" processes or "ray"; for Slurm, hand
    `ShareTask` to datatrove's `SlurmPipelineExecutor`. options: fields of `BuildConfig`.

    Raises `UsageError` without datatrove, for an unknown engine, or for a folder begun with other settings, `BudgetError` when
    too much was rejected over all shares, `CM3Error` when a task failed; its log lies below `out/logs`.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}; {nearest(engine, list(ENGINES))}")
    out = Path(out).absolute()
    task = ShareTask(str(source), out, str(encoder), BuildConfig(**options))
    task.require_plan(tasks)
    shards = [out / "shards" / f"{rank:05d}" for rank in range(tasks)]
    try:
        _executor(engine)(pipeline=[task], tasks=tasks, workers=workers, logging_dir=str(out / "logs")).run()
    except CM3Error:
        raise
    except Exception as error:  # of whatever machinery runs the tasks
        raise CM3Error(f"a task failed: {str(error).splitlines()[0] if str(error) else error!r}; see {out / 'logs'}") from error
    if missing := [shard.name for shard in shards if not shard.is_dir()]:
        raise CM3Error(
            f"{len(missing)} of {tasks} shards are missing (first: {missing[0]}); see {out / 'logs'}, then run it again"
        )
    total_account(out).check(task.config.budget)
    return shards


def total_account(out: Path) -> ReadReport:
    """What became of the records of the source, over all tasks that are done."""
    total = ReadReport()
    for file in sorted((out / "accounts").glob("*.json")):
        record: Mapping[str, Any] = read_json(file)
        total.seen += record["seen"]
        total.ok += record["ok"]
        for reason, count in record["rejected"].items():
            total.rejected[reason] = total.rejected.get(reason, 0) + count
    return total


def _files(source: str) -> list[Path]:
    paths = expand_source(source)
    if len(paths) == 1 and paths[0].is_dir() and (tars := sorted(paths[0].glob("*.tar"))):
        return tars
    return paths


def _share(files: list[Path], by_files: bool, rank: int, world_size: int, account: ReadReport) -> Iterator[Document]:
    own = files[rank::world_size] if by_files else files
    documents = chain.from_iterable(read_documents(file, report=account) for file in own)
    return documents if by_files else islice(documents, rank, None, world_size)


def _again(first: Document, others: Iterator[Document]) -> Iterator[Document]:
    yield first
    yield from others


def _executor(engine: str) -> Any:
    try:
        from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor
    except ImportError:
        raise UsageError("shares need datatrove, which is not installed; pip install 'cm3-multimodal[scale]'") from None
    return LocalPipelineExecutor if engine == "local" else RayPipelineExecutor
