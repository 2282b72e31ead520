"""Documents to other documents in pieces: what `cm3 vqgan encode` and `decode` share.

    DATA ──► piece 0, piece 1, … in OUT.partial/ ──► OUT/ (the documents, report.json)

A piece is `piece_size` documents of the source after each other. It is an artefact folder, written whole or not at all and
never made again, so a killed run goes on where it was. When all stand they are joined and become OUT in one rename. The
result depends on the source, the tokenizer and the settings of the job alone: not on workers, nor on how often the run was
interrupted. Every piece remembers which documents it was made of, so that a source that changed in between is noticed; a
piece that was damaged is made again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from cm3.core.artefact import fingerprint, read_json, read_manifest, storage_errors, verify, write_json, writing
from cm3.core.errors import ArtefactError, BudgetError, CM3Error, UsageError
from cm3.core.progress import Progress, progress
from cm3.core.runfile import RunConfig
from cm3.core.storage import sibling
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.joining import join_documents
from cm3.documents.readers import read_documents
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import ReadOptions
from cm3.documents.report import Problem, ReadReport
from cm3.documents.writers import KIND, WRITERS, check_document
from cm3.train.runlock import run_lock

REPORT_FILE = "report.json"
_JOB_FILE = "job.json"
_NOTE_FILE = "piece.json"

Converter = Callable[[Sequence[Document]], Iterator[Document | Problem]]
"""Of a piece: every document converted, in order, or why it can't be."""

_logger = logging.getLogger(__name__)


class PiecesConfig(RunConfig):
    """`tokenizer`: a tokenizer folder; `data`: documents in any format that is read; `out`: the folder to write, in `format`
    (a name of `cm3.documents.writers.WRITERS`).

    `batch_size` pictures go through the network at once; `piece_size` documents are made and kept together, and are one tar of
    a WebDataset; `workers` threads decode or compress pictures; more than `budget` rejected records are an error; `device` runs
    the network.
    """

    tokenizer: str
    data: str
    out: str
    format: str = "jsonl"
    batch_size: int = Field(32, ge=1)
    piece_size: int = Field(1024, ge=1)
    workers: int = Field(1, ge=1)
    budget: float = Field(0.01, ge=0, le=1)
    device: str = "cpu"

    def job(self, kind: str) -> dict[str, Any]:
        """What the result depends on, as JSON values; equal jobs give equal bytes."""
        settings = self.model_dump(mode="json", exclude={"tokenizer", "out", "workers", "budget", "device"})
        return {"kind": kind, "tokenizer": fingerprint(self.tokenizer), **settings}


def convert_in_pieces(config: PiecesConfig, kind: str, open_converter: Callable[[], Converter]) -> ReadReport:
    """Write the documents of `config.data`, converted, to `config.out`; returns the account of all records.

    kind: what is done, in a word ("encoding"). open_converter: loads what it takes, called only when a piece is missing.
    Raises `BudgetError` when too many records are rejected, `UsageError` when the result or unfinished work of another job is in
    the way or the source has changed since the run began, `RunLockedError` when another process is at it, `StorageError`.
    Calling again after success changes nothing.
    """
    WRITERS.get(config.format)  # a wrong name is an error now
    out = Path(config.out)
    unfinished = sibling(out, suffix=".partial")
    job = config.job(kind)
    report = _finished(out, job)
    if report is None:
        report = ReadReport()
        with run_lock(unfinished):
            _claim(unfinished, job)
            pieces = _make_pieces(config, kind, unfinished, open_converter, report)
            write_json(unfinished / REPORT_FILE, _account(report))
            _check_budget(report, config.budget, unfinished)
            _publish(pieces, out, job, report)
    shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _make_pieces(
    config: PiecesConfig, kind: str, unfinished: Path, open_converter: Callable[[], Converter], report: ReadReport
) -> list[Path]:
    """Make the pieces that don't stand yet; all of them in order. `report` gets the account."""
    documents = read_documents(config.data, report=report, options=ReadOptions(decode=False))
    pieces: list[Path] = []
    problems: list[Problem] = []
    convert: Converter | None = None
    with progress(0, kind, unit="document") as bar:
        for number in itertools.count():
            batch = list(itertools.islice(documents, config.piece_size))
            source, piece = _source_hash(batch), unfinished / f"piece-{number:06d}"
            note = _standing(piece)
            if note is None and batch:
                convert = convert or open_converter()
                note = _make_piece(piece, source, _complete(convert(batch), len(batch), bar), config.format)
            elif batch:
                bar.advance(len(batch))
            if note is None:
                break
            if note["source"] != source:
                raise UsageError(f"{config.data} has changed since {unfinished} was begun; remove that folder to start over")
            pieces.append(piece)
            problems += map(_problem, note["problems"])
    for problem in problems:
        report.take_back(RecordError(problem.reason, problem.message), problem.file, problem.where)
    return pieces


def _make_piece(piece: Path, source: str, converted: Iterator[Document | Problem], format: str) -> dict[str, Any]:
    """Write the folder `piece`; returns its note: of what it was made, and what became of the documents that are not in it."""
    problems: list[Problem] = []
    with writing(piece, kind=KIND, provenance={"format": format}) as folder:
        WRITERS.get(format)(_accepted(converted, format, problems), folder, sys.maxsize)  # one tar
        note = {"source": source, "problems": [asdict(problem) for problem in problems]}
        write_json(folder / _NOTE_FILE, note)
    return note


def _complete(converted: Iterable[Document | Problem], expected: int, bar: Progress) -> Iterator[Document | Problem]:
    """What became of every document, shown on `bar`; a converter that loses one is an error, not a smaller result."""
    count = 0
    for outcome in converted:
        count += 1
        yield outcome
        bar.advance()
    if count != expected:
        raise CM3Error(f"documents were lost: {expected} came in, {count} were accounted for")


def _accepted(converted: Iterable[Document | Problem], format: str, problems: list[Problem]) -> Iterator[Document]:
    """The documents that can be written; `problems` gets what became of the others."""
    for outcome in converted:
        if isinstance(outcome, Problem):
            problems.append(outcome)
            continue
        try:
            check_document(outcome, format)
        except RecordError as error:
            problems.append(Problem(outcome.id, "meta", error.reason, str(error)))
            continue
        yield outcome


def _standing(piece: Path) -> dict[str, Any] | None:
    """The note of a piece that stands whole, None when there is none; one that is damaged is removed."""
    if not piece.exists():
        return None
    try:
        verify(piece, kind=KIND)
        note: dict[str, Any] = read_json(piece / _NOTE_FILE)
        return note
    except ArtefactError as error:
        _logger.warning("%s (this piece is made again)", error)
    with storage_errors(piece):
        shutil.rmtree(piece)
    return None


def _publish(pieces: Sequence[Path], out: Path, job: dict[str, Any], report: ReadReport) -> None:
    with writing(out, kind=KIND, provenance={"format": job["format"], "job": job}) as folder, storage_errors(out):
        join_documents(pieces, folder, job["format"])
        write_json(folder / REPORT_FILE, _account(report))


def _finished(out: Path, job: dict[str, Any]) -> ReadReport | None:
    """The account of `out` when it is the finished result of `job`, None when nothing is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        made = read_manifest(out).provenance.get("job")
    except ArtefactError:
        made = None
    if made != job:
        raise UsageError(f"{out} exists and is not the result of this job; choose a new folder, or remove it")
    verify(out, kind=KIND, hashes=False)
    kept = read_json(out / REPORT_FILE)
    return ReadReport(kept["seen"], kept["ok"], kept["rejected"], [_problem(problem) for problem in kept["problems"]])


def _claim(unfinished: Path, job: dict[str, Any]) -> None:
    """Make sure the unfinished work in `unfinished` is of `job`."""
    file = unfinished / _JOB_FILE
    if file.exists() and read_json(file) != job:
        raise UsageError(f"{unfinished} holds unfinished work of another job; finish that one, or remove the folder")
    write_json(file, job)


def _check_budget(report: ReadReport, budget: float, folder: Path) -> None:
    try:
        report.check(budget)
    except BudgetError as error:
        raise BudgetError(f"{error}; all counts are in {folder / REPORT_FILE}") from None


def _account(report: ReadReport) -> dict[str, Any]:
    return {"seen": report.seen, **report.to_json()}


def _problem(stated: dict[str, Any]) -> Problem:
    return Problem(**{**stated, "reason": RejectReason(stated["reason"])})


def _source_hash(documents: Sequence[Document]) -> str:
    """Tells one run of documents from another, by all they say and where their pictures come from; files are not read."""
    digest = hashlib.sha256()
    for document in documents:
        parts = [segment.text if isinstance(segment, TextSegment) else _picture_mark(segment) for segment in document.segments]
        digest.update(json.dumps([document.id, dict(document.meta), *parts], sort_keys=True).encode())
    return digest.hexdigest()


def _picture_mark(segment: ImageSegment) -> list[Any]:
    if segment.path is not None:
        try:
            state = segment.path.stat()
        except OSError:  # gone since it was listed: decoding says so
            return [str(segment.path)]
        return [str(segment.path), state.st_size, state.st_mtime_ns]
    if segment.encoded is not None:
        return [hashlib.sha256(segment.encoded).hexdigest()]
    return [] if segment.codes is None else segment.codes.tolist()
