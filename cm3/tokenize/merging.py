"""All parts to one folder of token shards, in the order of the source, with one account of every record."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cm3.core import artefact
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.report import MAX_PROBLEMS, ReadReport
from cm3.sequences.shards import write_shards
from cm3.tokenize.parts import TokenizeJob, part_documents, read_account
from cm3.tokens import DocumentTokenizer, TokenizedDocument


def merge(job: TokenizeJob, out: Path, count: int, budget: float) -> dict[str, Any]:
    """Write the shards of the finished parts 0 … count - 1 to `out`, remove the parts, and return the account.

    An id that stands in two parts is kept once, and its later records are counted as duplicates. Raises `BudgetError` when more
    than `budget` of the records were rejected (the parts stay), `ArtefactError` when a part lacks documents that its account
    has, `InputError` when nothing is left.
    """
    report = ReadReport()
    for number in range(count):
        _add(report, read_account(job, number))
    tokens = 0

    def documents() -> Iterator[TokenizedDocument]:
        nonlocal tokens
        met: set[str] = set()
        for number in range(count):
            for document in part_documents(job, number):
                if document.id in met:
                    report.ok -= 1
                    report.reject(_duplicate(document.id), job.source, f"part {number}")
                    continue
                met.add(document.id)
                tokens += len(document)
                yield document
        report.check(budget)

    report.check(budget)
    provenance = {"source": job.source, "image_tokenizer": artefact.fingerprint(job.image_tokenizer)}
    write_shards(documents(), out, DocumentTokenizer.load(job.tokenizer), provenance)
    shutil.rmtree(job.parts, ignore_errors=True)
    return {**asdict(report), "tokens": tokens}


def _add(report: ReadReport, part: ReadReport) -> None:
    part.check_balance()
    report.seen += part.seen
    report.ok += part.ok
    for reason, number in part.rejected.items():
        report.rejected[reason] = report.rejected.get(reason, 0) + number
    report.problems += part.problems[: MAX_PROBLEMS - len(report.problems)]


def _duplicate(name: str) -> RecordError:
    return RecordError(RejectReason.DUPLICATE_KEY, f"the id {name:.80} stands in an earlier record too")
