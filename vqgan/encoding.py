"""Whole data sets to codes: `cm3 vqgan encode`.

    pictures (folder, tar, JSONL, table) ──► documents with codes instead of pictures (documents.jsonl), report.json

Encoding works through the source in pieces of `piece_size` documents. A finished piece lies in `OUT.partial/` and is never made
again, so a killed run goes on where it was; at the end the pieces become the folder OUT in one rename. The result
depends on the source and the tokenizer alone: workers only decode pictures ahead, batches are always cut the same way.
Every piece remembers which records it was made of, so that a source that changed in between is noticed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from cm3.core.artefact import fingerprint, read_json, read_manifest, storage_errors, write_json, write_text, writing
from cm3.core.errors import ArtefactError, BudgetError, UsageError
from cm3.core.progress import progress
from cm3.core.runfile import RunConfig
from cm3.documents.document import Document, ImageSegment, TextSegment
from cm3.documents.readers import read_documents
from cm3.documents.reasons import ImageError, RejectReason
from cm3.documents.records import ReadOptions, segment_to_json
from cm3.documents.report import Problem, ReadReport
from cm3.train.runlock import run_lock
from vqgan.loading import ordered_map, picture_array
from vqgan.preprocessing import to_pixels
from vqgan.regions import has_pixels
from vqgan.tokenizer import VQTokenizer, from_pretrained

DOCUMENTS_FILE = "documents.jsonl"
REPORT_FILE = "report.json"
_JOB_FILE = "job.json"


class EncodeConfig(RunConfig):
    """`tokenizer`: a tokenizer folder; `data`: pictures; `out`: the folder to write. `batch_size` pictures are encoded at once;
    `piece_size` documents are kept together; `workers` threads decode pictures, large JPEGs at a fraction of their size when
    `draft` allows it (faster, slightly other pixels); more than `budget` rejected records are an error; `device` runs the
    network."""

    tokenizer: str
    data: str
    out: str
    batch_size: int = Field(32, ge=1)
    piece_size: int = Field(1024, ge=1)
    workers: int = Field(1, ge=1)
    draft: bool = False
    budget: float = Field(0.01, ge=0, le=1)
    device: str = "cpu"


def encode_documents(config: EncodeConfig) -> ReadReport:
    """Encode every picture of `config.data` and write the documents with their codes to `config.out`; returns the account.

    Text, order and meta stay. A document with a picture that can't be decoded is rejected whole. Raises `BudgetError` when too
    many are, `UsageError` when unfinished work of another job is in the way. Calling again after success changes nothing.
    """
    out = Path(config.out)
    unfinished = out.with_name(out.name + ".partial")
    job = {"tokenizer": fingerprint(config.tokenizer)} | config.model_dump(include={"data", "batch_size", "piece_size", "draft"})
    if (report := _finished(out, job)) is not None:
        shutil.rmtree(unfinished, ignore_errors=True)
        return report
    tokenizer = from_pretrained(config.tokenizer, config.device)
    with run_lock(unfinished):
        _claim(unfinished, job)
        report = _encode_pieces(tokenizer, config, unfinished)
        write_json(unfinished / REPORT_FILE, {"seen": report.seen, **report.to_json()})
        _check_budget(report, config.budget, unfinished)
        _publish(unfinished, out, job, report)
    shutil.rmtree(unfinished, ignore_errors=True)
    return report


def _encode_pieces(tokenizer: VQTokenizer, config: EncodeConfig, folder: Path) -> ReadReport:
    """Make the missing pieces; the account of all of them."""
    report = ReadReport()
    documents = read_documents(config.data, report=report, options=ReadOptions(decode=False))
    unreadable: list[dict[str, Any]] = []
    with progress(0, "encoding", unit="document") as bar:
        for number in range(1 << 62):
            piece, note = list(islice(documents, config.piece_size)), folder / f"piece-{number:06}.json"
            source = _source_hash(piece) if piece else None
            if not piece and not note.exists():
                break
            if not note.exists():
                lines, problems = _encode_piece(tokenizer, piece, config)
                write_text(folder / f"piece-{number:06}.jsonl", lines)
                write_json(note, {"source": source, "problems": problems})  # last: its presence says that the piece stands
            made = read_json(note)
            if made["source"] != source:
                raise UsageError(f"{config.data} has changed since {folder} was begun; remove that folder to start over")
            unreadable += made["problems"]
            bar.advance(len(piece))
    for problem in unreadable:
        error = ImageError(RejectReason(problem["reason"]), problem["message"])
        report.take_back(error, problem["file"], problem["where"])
    return report


def _encode_piece(
    tokenizer: VQTokenizer, documents: Sequence[Document], config: EncodeConfig
) -> tuple[str, list[dict[str, Any]]]:
    """The JSON lines of `documents`, and the problems of those that could not be encoded.

    Threads decode pictures ahead while the network works; no more than a few batches of pixels stand in memory.
    """
    kept, problems, codes = [], [], []
    waiting: list[np.ndarray] = []
    load = partial(_decoded, tokenizer=tokenizer, draft=config.draft)
    for document, loaded in zip(documents, ordered_map(load, documents, config.workers)):
        if isinstance(loaded, Problem):
            problems.append(asdict(loaded))
            continue
        kept.append(document)
        waiting += loaded
        while len(waiting) >= config.batch_size:
            codes += _codes(tokenizer, waiting[: config.batch_size])
            del waiting[: config.batch_size]
    if waiting:
        codes += _codes(tokenizer, waiting)
    rows = iter(codes)
    return "".join(_line(document, rows) for document in kept), problems


def _decoded(document: Document, tokenizer: VQTokenizer, draft: bool) -> list[np.ndarray] | Problem:
    """The fitted pictures of a document, or why one of them can't be used."""
    arrays = []
    for number, segment in enumerate(document.images):
        if not has_pixels(segment):
            continue  # codes already
        try:
            arrays.append(picture_array(segment, tokenizer.image_size, tokenizer.config.preprocessing, draft))
        except ImageError as error:
            return Problem(document.id, f"picture {number}", error.reason, str(error))
    return arrays


def _source_hash(documents: Sequence[Document]) -> str:
    """Tells one run of documents from another, by ids, texts and where the pictures come from; files are not read."""
    digest = hashlib.sha256()
    for document in documents:
        parts = [segment.text if isinstance(segment, TextSegment) else _picture_mark(segment) for segment in document.segments]
        digest.update(json.dumps([document.id, *parts]).encode())
    return digest.hexdigest()


def _picture_mark(segment: ImageSegment) -> list[Any]:
    if segment.path is not None:
        try:
            state = segment.path.stat()
        except OSError:  # gone since it was listed: decoding says so
            return [str(segment.path)]
        return [str(segment.path), state.st_size, state.st_mtime_ns]
    return [hashlib.sha256(segment.encoded).hexdigest()] if segment.encoded is not None else []


def _check_budget(report: ReadReport, budget: float, folder: Path) -> None:
    try:
        report.check(budget)
    except BudgetError as error:
        raise BudgetError(f"{error}; all counts are in {folder / REPORT_FILE}") from None


def _codes(tokenizer: VQTokenizer, arrays: Sequence[np.ndarray]) -> list[list[list[int]]]:
    return tokenizer.encode(to_pixels(torch.from_numpy(np.stack(arrays)))).tolist()


def _line(document: Document, codes: Iterator[list[list[int]]]) -> str:
    segments = []
    for segment in document.segments:
        if isinstance(segment, ImageSegment) and has_pixels(segment):
            segments.append({"type": "image", "codes": next(codes)})
        else:
            segments.append(segment_to_json(segment, None))
    record = {"id": document.id, "segments": segments, "meta": dict(document.meta)}
    return json.dumps(record, ensure_ascii=False, sort_keys=True, default=str) + "\n"


def _finished(out: Path, job: dict[str, Any]) -> ReadReport | None:
    """The account of `out` when it is the finished result of `job`, None when there is no `out`."""
    if not out.exists():
        return None
    try:
        made = read_manifest(out).provenance.get("job")
    except ArtefactError:
        made = None
    if made != job:
        raise UsageError(f"{out} exists and is not the result of this job; choose a new folder, or remove it")
    kept = read_json(out / REPORT_FILE)
    problems = [Problem(**{**problem, "reason": RejectReason(problem["reason"])}) for problem in kept["problems"]]
    return ReadReport(kept["seen"], kept["ok"], kept["rejected"], problems)


def _claim(unfinished: Path, job: dict[str, Any]) -> None:
    """Make sure the unfinished work in `unfinished` is of `job`."""
    file = unfinished / _JOB_FILE
    if file.exists() and read_json(file) != job:
        raise UsageError(f"{unfinished} holds unfinished work of another job; finish that one, or remove the folder")
    write_json(file, job)


def _publish(unfinished: Path, out: Path, job: dict[str, Any], report: ReadReport) -> None:
    with writing(out, kind="documents", provenance={"format": "jsonl", "job": job}) as folder:
        with storage_errors(folder), open(folder / DOCUMENTS_FILE, "wb") as documents:
            for note in sorted(unfinished.glob("piece-*.json")):
                with open(note.with_suffix(".jsonl"), "rb") as stream:
                    shutil.copyfileobj(stream, documents)
        write_json(folder / REPORT_FILE, {"seen": report.seen, **report.to_json()})
