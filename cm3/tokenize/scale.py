"""Tokenizing across machines with datatrove's executors (local, Slurm, Ray): extra `scale`.

    from datatrove.executor import SlurmPipelineExecutor
    from cm3.tokenize.scale import pipelines

    encode, join = pipelines("data/{0000..0999}.tar", "tokenizer", "image_tokenizer", "tokens")
    first = SlurmPipelineExecutor(pipeline=encode, tasks=64, job_name="encode", ...)
    SlurmPipelineExecutor(pipeline=join, tasks=1, job_name="join", depends=first, ...).run()

Task r of n makes the parts k with k mod n = r, on a file system that all of them see; the shards are the same bytes as those
of `cm3 tokenize` on one machine. A task that is run again makes only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cm3.core import artefact
from cm3.core.errors import ArtefactError, UsageError
from cm3.tokenize.merging import merge
from cm3.tokenize.parts import TokenizeJob, count_records, is_finished, make_job, make_parts
from cm3.tokenize.workers import parts_folder

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError:
    raise UsageError("cm3.tokenize.scale needs datatrove: `pip install 'cm3-multimodal[scale]'`") from None


def pipelines(
    source: Path | str, tokenizer: Path | str, image_tokenizer: Path | str, out: Path | str, budget: float = 0.01
) -> tuple[list[PipelineStep], list[PipelineStep]]:
    """The two pipelines: the first for any number of tasks, the second for one task, once all of the first have ended."""
    job = make_job(source, Path(tokenizer), Path(image_tokenizer), parts_folder(Path(out)))
    return [EncodeParts(job)], [JoinParts(job, Path(out), budget)]


class EncodeParts(PipelineStep):
    """Makes the missing parts of one task."""

    name = "cm3: encode parts"
    type = "tokenize"

    def __init__(self, job: TokenizeJob) -> None:
        super().__init__()
        self._job = job

    def run(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Make the parts of task `rank` of `world_size`; passes `data` on."""
        job, key = self._job, self._job.key
        count = -(-count_records(job) // job.records_per_part)
        missing = frozenset(number for number in range(rank, count, world_size) if not is_finished(job, number, key))
        for records in make_parts(job, key, missing) if missing else ():
            self.stat_update("records", value=records)
        yield from data or ()


class JoinParts(PipelineStep):
    """Joins all parts to the shards; refuses while one is missing."""

    name = "cm3: join parts"
    type = "tokenize"

    def __init__(self, job: TokenizeJob, out: Path, budget: float) -> None:
        super().__init__()
        self._job, self._out, self._budget = job, out, budget

    def run(self, data: Iterable[Any] | None = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Write the shards (task 0 only) and their account to OUT-account.json; passes `data` on."""
        if rank == 0:
            job, key = self._job, self._job.key
            count = -(-count_records(job) // job.records_per_part)
            missing = [number for number in range(count) if not is_finished(job, number, key)]
            if missing:
                raise ArtefactError(f"{len(missing)} of {count} parts are missing (first: {missing[0]}); run the encoding again")
            account = merge(job, self._out, count, self._budget)
            artefact.write_json(self._out.with_name(self._out.name + "-account.json"), account)
        yield from data or ()
