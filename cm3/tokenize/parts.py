"""One part of a tokenization: a fixed run of records to token shards of their own, with the account of those records.

The records of a source are cut into parts of `RECORDS_PER_PART`, whoever works on them; every part is encoded by itself, on
one thread, so its bytes depend on nothing else. A finished part is an artefact folder, and is never made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

import vqgan
from cm3.core import artefact
from cm3.core.errors import ArtefactError, InputError
from cm3.documents.document import Document
from cm3.documents.readers import account_records, detect_format, open_records
from cm3.documents.readers.sources import expand_source
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import ReadOptions, Record
from cm3.documents.report import Problem, ReadReport
from cm3.sequences.shards import TokenShards, write_shards
from cm3.tokenize.vocabulary import require_own_image_tokenizer
from cm3.tokens import DocumentTokenizer, TokenizedDocument

RECORDS_PER_PART = 1024
PART_KIND = "token_part"
TOKENS, ACCOUNT = "tokens", "account.json"
_OPTIONS = ReadOptions(decode=False)  # pictures are decoded when they are encoded, by the worker whose part they are in


@dataclass(frozen=True)
class TokenizeJob:
    """What is tokenized with what: `source` and its `format`, two tokenizer folders, where parts go, how large they are."""

    source: str
    format: str
    tokenizer: Path
    image_tokenizer: Path
    parts: Path
    records_per_part: int = RECORDS_PER_PART

    def part(self, number: int) -> Path:
        """The folder of part `number`."""
        return self.parts / f"part-{number:06d}"

    @property
    def key(self) -> str:
        """SHA-256 (hex) over everything that a part's bytes depend on, as far as `source_files` shows it."""
        tokenizers = [artefact.fingerprint(self.tokenizer), artefact.fingerprint(self.image_tokenizer)]
        return hashlib.sha256(
            json.dumps([source_files(self.source), self.format, tokenizers, self.records_per_part]).encode()
        ).hexdigest()


def source_files(source: Path | str) -> list[tuple[str, int, int]]:
    """(name, bytes, nanoseconds of its last change) of every file of the source; pictures that it only names are not."""
    files = [file for path in expand_source(source) for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def make_job(source: Path | str, tokenizer: Path, image_tokenizer: Path, parts: Path, format: str | None = None) -> TokenizeJob:
    """The job, checked as far as that is quick. Raises `InputError` for the source, `ArtefactError` for the tokenizers.

    tokenizer: a document tokenizer, or a model with its own.
    """
    artefact.verify(tokenizer)
    job = TokenizeJob(str(source), format or detect_format(source), Path(tokenizer), Path(image_tokenizer), parts)
    load_tokenizer(job)
    require_own_image_tokenizer(job.tokenizer, job.image_tokenizer)
    return job


def load_tokenizer(job: TokenizeJob) -> DocumentTokenizer:
    """The document tokenizer of the job, joined with its image tokenizer."""
    return DocumentTokenizer.load(job.tokenizer, vqgan.from_pretrained(job.image_tokenizer))


def count_records(job: TokenizeJob) -> int:
    """How many records the source has; nothing is built. Raises `InputError` when there is none."""
    count = sum(1 for _ in open_records(job.source, job.format, _OPTIONS))
    if count == 0:
        raise InputError(f"{job.source} holds no records; check that it is what you meant")
    return count


def is_finished(job: TokenizeJob, number: int, key: str) -> bool:
    """Whether part `number` stands, whole, made from these records with these tokenizers, with all documents it accounts for."""
    try:
        made_for = artefact.verify(job.part(number), PART_KIND).provenance.get("key")
        _stored(job, number)
        return made_for == key
    except ArtefactError:
        return False


def make_parts(job: TokenizeJob, key: str, numbers: frozenset[int]) -> Iterator[int]:
    """Make the parts `numbers` in order, on one thread; yields how many records each had. Reads the source once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer = load_tokenizer(job)
        records = enumerate(open_records(job.source, job.format, _OPTIONS))
        for number, group in groupby(records, key=lambda pair: pair[0] // job.records_per_part):
            if number in numbers:
                yield _make_part(job, key, number, (record for _, record in group), tokenizer)
    finally:
        torch.set_num_threads(threads)


def _make_part(job: TokenizeJob, key: str, number: int, records: Iterator[Record], tokenizer: DocumentTokenizer) -> int:
    report = ReadReport()

    def reject(document: Document, error: InputError) -> None:
        known = error if isinstance(error, RecordError) else RecordError(RejectReason.BAD_RECORD, str(error))
        report.ok -= 1
        report.reject(known, job.source, document.id)

    documents = account_records(records, _OPTIONS, report, job.source)
    encoded = list(tokenizer.encode_many(documents, on_reject=reject))
    with artefact.writing(job.part(number), PART_KIND, {"key": key}) as folder:
        if encoded:
            write_shards(encoded, folder / TOKENS, tokenizer)
        artefact.write_json(folder / ACCOUNT, asdict(report))
    return report.seen


def read_account(job: TokenizeJob, number: int) -> ReadReport:
    """The account of a finished part."""
    value: dict[str, Any] = artefact.read_json(job.part(number) / ACCOUNT)
    problems = [Problem(**{**problem, "reason": RejectReason(problem["reason"])}) for problem in value.pop("problems")]
    return replace(ReadReport(**value), problems=problems)


def part_documents(job: TokenizeJob, number: int) -> Iterator[TokenizedDocument]:
    """The tokenized documents of a finished part, in order. Raises `ArtefactError` unless they are those of its account."""
    stored = _stored(job, number)
    yield from (stored[index] for index in range(len(stored)))


def _stored(job: TokenizeJob, number: int) -> TokenShards | tuple[()]:
    path = job.part(number) / TOKENS
    shards = TokenShards(path, hashes=False) if path.is_dir() else ()  # the part's own manifest has vouched for every byte
    if len(shards) != (stated := read_account(job, number).ok):
        raise ArtefactError(
            f"{job.part(number)} holds {len(shards)} documents, its account has {stated}; remove that folder and run again"
        )
    return shards
