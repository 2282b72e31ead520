"""Index tables as rows: CSV (RFC 4180), TSV (IANA text/tab-separated-values: no quoting) and JSONL; columns by name.

A row that can't be read is a `RecordError` in its place, so that it is counted like any other record.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cm3.core.errors import InputError
from cm3.documents.reasons import RecordError, RejectReason
from cm3.documents.records import ReadOptions
from cm3.documents.texts import parse_json

METADATA_FILE = "metadata.jsonl"
IMAGE_COLUMNS = ("file_name", "filename", "file", "path", "image", "image_path", "filepath", "img")
TEXT_COLUMNS = ("text", "caption", "description", "prompt", "title", "name", "words")
_TEXT_ENDINGS = ("_text", "_caption", "_description", "_title", "_name", "_names")

Row = tuple[int, Mapping[str, Any] | RecordError]  # line number from 1; the row, or why it can't be read


@dataclass(frozen=True)
class Columns:
    """The column that names the picture, and those that may hold the text, best first."""

    image: str
    text: tuple[str, ...]


def is_table_name(name: str) -> bool:
    """Whether a file of this name could be an index table."""
    return name.lower().endswith((".csv", ".tsv")) or PurePosixPath(name).name == METADATA_FILE


def read_rows(name: str, data: bytes, options: ReadOptions) -> Iterator[Row]:
    """The rows of the table called `name`, as column → value; lines that are blank make none."""
    if name.lower().endswith(".jsonl"):
        return _json_rows(data, options)
    return _separated_rows(name, data)


def header(name: str, start: bytes) -> list[str]:
    """The column names of the table called `name`, from its first bytes; empty when they make no sense."""
    line = start.partition(b"\n")[0].decode("utf-8-sig", "replace").strip("\r")
    if not name.lower().endswith(".jsonl"):
        try:
            return next(_separated([line], name), [])
        except csv.Error:
            return []
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return []
    return list(value) if isinstance(value, dict) else []


def image_column(columns: Sequence[str]) -> str | None:
    """The column of `columns` that names pictures, or None."""
    return next((column for wanted in IMAGE_COLUMNS for column in columns if column.strip().lower() == wanted), None)


def text_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of `columns` that may hold the text, best first: known names, then names that end like one."""
    exact = [column for wanted in TEXT_COLUMNS for column in columns if column.strip().lower() == wanted]
    if exact:
        return tuple(exact)
    return tuple(
        column
        for column in columns
        if column.strip().lower().endswith(_TEXT_ENDINGS) and column.strip().lower() not in IMAGE_COLUMNS
    )


def choose_columns(name: str, columns: Sequence[str], options: ReadOptions) -> Columns:
    """The columns of the table called `name` that `options` ask for, or the ones found by name. Raises `InputError`."""
    for wanted in (options.image_column, options.text_column):
        if wanted is not None and wanted not in columns:
            raise InputError(f"{name} has no column {wanted!r}; it has {', '.join(columns)[:300]}")
    image = options.image_column or image_column(columns)
    text = (options.text_column,) if options.text_column else text_columns(columns)
    if image is None or not text:
        lacking = "names pictures" if image is None else "looks like text"
        raise InputError(f"{name} has no column that {lacking}; name one of {', '.join(columns)[:300]}")
    return Columns(image, text)


def _json_rows(data: bytes, options: ReadOptions) -> Iterator[Row]:
    for number, line in enumerate(io.BytesIO(data), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line, options.max_record_bytes)
        except RecordError as error:
            yield number, error
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            yield number, RecordError(RejectReason.BAD_RECORD, f"the row is a JSON {type(value).__name__}, expected an object")


def _separated(lines: Iterable[str], name: str) -> Any:
    """A `csv.reader` for the kind of table that `name` says. An open quote in CSV is an error: it would swallow rows."""
    if name.lower().endswith(".tsv"):
        return csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(lines, strict=True)


def _separated_rows(name: str, data: bytes) -> Iterator[Row]:
    text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")  # bytes that are no UTF-8 fail in their row
    reader = _separated(text, name)
    columns: list[str] = next(reader, [])
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, RecordError(RejectReason.BAD_RECORD, f"the row cannot be read: {error}")
            continue
        if len(values) > len(columns):
            message = f"the row has {len(values)} values for {len(columns)} columns"
            yield start, RecordError(RejectReason.BAD_RECORD, message)
        elif values:
            yield start, dict(zip(columns, values + [""] * (len(columns) - len(values))))
