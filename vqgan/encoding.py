"""Whole data sets to codes and back: `cm3 vqgan encode` and `decode`.

    pictures (folder, tar, JSONL) ──► documents with codes instead of pictures (documents.jsonl) ──► pictures again

Encoding works through the source in pieces of `piece_size` documents. A finished piece lies in `OUT.partial/` and is never made
again, so a killed run goes on where it was; at the end the pieces become the folder OUT in one rename. The result
depends on the source and the tokenizer alone: workers only decode pictures ahead, batches are always cut the same way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from cm3.core.artefact import fingerprint, read_json, read_manifest, storage_errors, write_json, write_text, writing
from cm3.core.errors import ArtefactError, InputError, UsageError
from cm3.core.progress import progress
from cm3.core.protocols import ImageTokenizer
from cm3.core.runfile import RunConfig
from cm3.documents.document import Document, ImageSegment
from cm3.documents.images import decode_image
from cm3.documents.readers import read_documents
from cm3.documents.reasons import ImageError, RejectReason
from cm3.documents.records import ReadOptions, segment_to_json
from cm3.documents.report import Problem, ReadReport
from cm3.documents.writers import write_documents
from cm3.train.runlock import run_lock
from vqgan.preprocessing import fit_image, image_array, to_pixels
from vqgan.tokenizer import VQTokenizer, from_pretrained

DOCUMENTS_FILE = "documents.jsonl"
REPORT_FILE = "report.json"
_JOB_FILE = "job.json"


class EncodeConfig(RunConfig):
    """`tokenizer`: a tokenizer folder; `data`: pictures; `out`: the folder to write. `batch_size` pictures are encoded at once;
    `piece_size` documents are kept together; `workers` threads decode pictures; more than `budget` rejected records are an
    error; `device` runs the network."""

    tokenizer: str
    data: str
    out: str
    batch_size: int = Field(32, ge=1)
    piece_size: int = Field(1024, ge=1)
    workers: int = Field(1, ge=1)
    budget: float = Field(0.01, ge=0, le=1)
    device: str = "cpu"


def encode_documents(config: EncodeConfig) -> ReadReport:
    """Encode every picture of `config.data` and write the documents with their codes to `config.out`; returns the account.

    Text, order and meta stay. A document with a picture that can't be decoded is rejected whole. Raises `BudgetError` when too
    many are, `UsageError` when unfinished work of another job is in the way. Calling again after success changes nothing.
    """
    out = Path(config.out)
    partial = out.with_name(out.name + ".partial")
    job = {"tokenizer": fingerprint(config.tokenizer)} | config.model_dump(include={"data", "batch_size", "piece_size"})
    if (report := _finished(out, job)) is not None:
        shutil.rmtree(partial, ignore_errors=True)
        return report
    tokenizer = from_pretrained(config.tokenizer, config.device)
    with run_lock(partial):
        _claim(partial, job)
        report = _encode_pieces(tokenizer, config, partial)
        report.check(config.budget)
        _publish(partial, out, job, report)
    shutil.rmtree(partial, ignore_errors=True)
    return report


def decode_documents(tokenizer: ImageTokenizer, source: Path | str, out: Path | str, format: str = "jsonl") -> int:
    """Write the documents of `source` to `out` with pictures (PNG) instead of codes; returns how many they were.

    `format`: a name of `cm3.documents.writers.WRITERS`. Raises `InputError` naming a document whose codes the tokenizer
    doesn't have.
    """
    documents = read_documents(source)
    with progress(0, "decoding", unit="document") as bar:
        return write_documents((_with_pictures(tokenizer, document) for document in documents), out, format, advance=bar.advance)


def _with_pictures(tokenizer: ImageTokenizer, document: Document) -> Document:
    segments = list(document.segments)
    coded = [index for index, segment in enumerate(segments) if isinstance(segment, ImageSegment) and segment.codes is not None]
    if not coded:
        return document
    try:
        codes = torch.stack([torch.as_tensor(segments[index].codes) for index in coded])  # type: ignore[union-attr]
        images = tokenizer.postprocess(tokenizer.decode(codes))
    except (InputError, RuntimeError) as error:
        raise InputError(f"document {document.id:.80}: {error}; decode with the tokenizer that made the codes") from None
    for index, image in zip(coded, images):
        segments[index] = ImageSegment(image=image)
    return replace(document, segments=tuple(segments))


def _encode_pieces(tokenizer: VQTokenizer, config: EncodeConfig, partial: Path) -> ReadReport:
    """Make the missing pieces; the account of all of them."""
    report = ReadReport()
    documents = read_documents(config.data, report=report, options=ReadOptions(decode=False))
    unreadable: list[dict[str, Any]] = []
    with progress(0, "encoding", unit="document") as bar, ThreadPoolExecutor(config.workers) as pool:
        for number in range(1 << 62):
            piece = list(islice(documents, config.piece_size))
            if not piece:
                break
            problems_file = partial / f"piece-{number:06}.json"
            if not problems_file.exists():
                lines, problems = _encode_piece(tokenizer, piece, config.batch_size, pool)
                write_text(partial / f"piece-{number:06}.jsonl", lines)
                write_json(problems_file, problems)  # last: its presence says that the piece stands
            unreadable += read_json(problems_file)
            bar.advance(len(piece))
    for problem in unreadable:
        report.ok -= 1
        report.reject(ImageError(RejectReason(problem["reason"]), problem["message"]), problem["file"], problem["where"])
    return report


def _encode_piece(
    tokenizer: VQTokenizer, documents: Sequence[Document], batch_size: int, pool: ThreadPoolExecutor
) -> tuple[str, list[dict[str, Any]]]:
    """The JSON lines of `documents`, and the problems of those that could not be encoded."""
    decoded = list(pool.map(lambda document: _decoded(tokenizer, document), documents))
    problems = [asdict(item) for item in decoded if isinstance(item, Problem)]
    kept = [(document, arrays) for document, arrays in zip(documents, decoded) if not isinstance(arrays, Problem)]
    flat = [array for _, arrays in kept for array in arrays]
    batches = [flat[start : start + batch_size] for start in range(0, len(flat), batch_size)]
    codes = iter([row for batch in batches for row in _codes(tokenizer, batch)])
    return "".join(_line(document, codes) for document, _ in kept), problems


def _decoded(tokenizer: VQTokenizer, document: Document) -> list[Tensor] | Problem:
    """The fitted pictures of a document, or why one of them can't be used."""
    arrays = []
    for number, segment in enumerate(document.images):
        source = segment.image or segment.encoded or segment.path
        if source is None:
            continue  # codes already
        try:
            image = fit_image(decode_image(source), tokenizer.image_size, tokenizer.config.preprocessing)
        except ImageError as error:
            return Problem(document.id, f"picture {number}", error.reason, str(error))
        arrays.append(torch.from_numpy(image_array(image)))
    return arrays


def _codes(tokenizer: VQTokenizer, arrays: Sequence[Tensor]) -> list[list[list[int]]]:
    return tokenizer.encode(to_pixels(torch.stack(list(arrays)))).tolist()


def _line(document: Document, codes: Iterator[list[list[int]]]) -> str:
    segments = []
    for segment in document.segments:
        if isinstance(segment, ImageSegment) and (segment.image or segment.encoded or segment.path) is not None:
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


def _claim(partial: Path, job: dict[str, Any]) -> None:
    """Make sure the unfinished work in `partial` is of `job`."""
    file = partial / _JOB_FILE
    if file.exists() and read_json(file) != job:
        raise UsageError(f"{partial} holds unfinished work of another job; finish that one, or remove the folder")
    write_json(file, job)


def _publish(partial: Path, out: Path, job: dict[str, Any], report: ReadReport) -> None:
    with writing(out, kind="documents", provenance={"format": "jsonl", "job": job}) as folder:
        with storage_errors(folder), open(folder / DOCUMENTS_FILE, "wb") as documents:
            for piece in sorted(partial.glob("piece-*.jsonl")):
                with open(piece, "rb") as stream:
                    shutil.copyfileobj(stream, documents)
        write_json(folder / REPORT_FILE, {"seen": report.seen, **report.to_json()})
