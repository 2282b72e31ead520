"""Readers: one file per format, listed here, and the one loop that turns what they find into Documents.

    jsonl        one JSON object per line, pictures as files beside it
    folder       a tree of pictures, captions in .txt, .caption or .json files of the same name
    webdataset   tar shards of samples KEY.png + KEY.txt + KEY.json
    table        pictures (in a folder or a tar) and an index table: .csv, .tsv or metadata.jsonl

A new format is one module with `find_records(source, options) -> Iterator[Record]` and one line in `READERS`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from cm3.core.errors import InputError
from cm3.core.registry import Registry
from cm3.documents.document import Document
from cm3.documents.readers.detection import detect_format
from cm3.documents.readers.sources import expand_source
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import ReadOptions, Record
from cm3.documents.report import ReadReport

__all__ = ["READERS", "account_records", "detect_format", "open_records", "read_documents"]

READERS = Registry(
    "reader",
    {
        "jsonl": "cm3.documents.readers.jsonl:find_records",
        "folder": "cm3.documents.readers.folder:find_records",
        "webdataset": "cm3.documents.readers.webdataset:find_records",
        "table": "cm3.documents.readers.table:find_records",
    },
)

_logger = logging.getLogger(__name__)


def read_documents(
    source: Path | str,
    format: str | None = None,
    report: ReadReport | None = None,
    options: ReadOptions | None = None,
) -> Iterator[Document]:
    """Stream the documents of `source`, in an order that depends on the source alone.

    source: a folder, a file, or several tars as a glob ("data/*.tar") or with braces ("data/{000..099}.tar").
    format: a name of `READERS`; found out by `detect_format` when None.
    report: gets the account of every record, and the caller decides (`report.check`). Without one, more than 1 % of
        rejected records raise `BudgetError` at the end, and fewer are logged as a warning.

    The source is checked before this returns. Raises `InputError` (nothing there, unknown format, damaged shard) and
    `UsageError` (unknown format name).
    """
    options = options or ReadOptions()
    return account_records(open_records(source, format, options), options, report, str(source))


def open_records(source: Path | str, format: str | None, options: ReadOptions) -> Iterator[Record]:
    """The records of `source` in order, each still to be built; skipping one costs next to nothing. Raises as reading does."""
    find_records = READERS.get(format or detect_format(source))
    expand_source(source)  # a wrong path is an error now, not at the first document
    return find_records(source, options)


def account_records(
    records: Iterator[Record], options: ReadOptions, report: ReadReport | None, source: str
) -> Iterator[Document]:
    """Build `records` one by one, all of them or a part; `report` as in `read_documents`, `source` for messages."""
    kept = ReadReport() if report is None else report
    places: dict[str, str] = {}  # id → where it was first met
    for record in records:
        kept.seen += 1
        try:
            document = record.build()
            _check_content(document, options)
            _check_unique(document, places, f"{record.file} {record.where}")
        except RecordError as error:
            kept.reject(error, record.file, record.where)
            continue
        kept.ok += 1
        yield document
    kept.check_balance()
    if kept.seen == 0:
        raise InputError(f"{source} holds no records; check that it is what you meant")
    if report is None and kept.rejected:
        kept.check()
        _logger.warning("%s: %d of %d records rejected: %s", source, kept.num_rejected, kept.seen, kept.rejected)


def _check_content(document: Document, options: ReadOptions) -> None:
    has_text, has_image = bool(document.text.strip()), bool(document.images)
    if not has_text and not has_image:
        raise RecordError(RejectReason.NO_CONTENT, "the record has neither text nor a picture")
    if options.require_text and not has_text:
        raise RecordError(RejectReason.MISSING_TEXT, "the record has a picture but no text")
    if options.require_image and not has_image:
        raise RecordError(RejectReason.MISSING_IMAGE, "the record has text but no picture")


def _check_unique(document: Document, places: dict[str, str], here: str) -> None:
    first = places.setdefault(document.id, here)
    if first is not here:
        raise RecordError(RejectReason.DUPLICATE_KEY, f"the id {document.id:.80} stands in {first} and again in {here}")
