"""Data formats: what people bring, as Documents with roles. One file each, listed here.

    pairs   a text and a picture                  → Document(text, picture)
    vqa     a picture, questions with answers     → Document(picture), meta["questions"] = [{"question", "answer"}, …]
    edits   source, instruction, target, mask?    → Document(source, instruction, target[, mask]), meta["images"] names them

Every format reads every container of `cm3.documents` (JSONL, WebDataset, folder, table): a format is a reader (a function
`find_records(source, options)`) that arranges what the container's reader finds. Accounting, budget and duplicate keys are
those of `read_documents`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cm3.core.registry import Registry
from cm3.documents.document import Document
from cm3.documents.readers import read_documents
from cm3.documents.reasons import RecordError
from cm3.documents.records import ReadOptions
from cm3.documents.report import MAX_PROBLEMS, ReadReport
from sft.formats.arranging import field_of

__all__ = ["FORMATS", "check", "read_format"]

_TABLE: Mapping[str, str] = {
    "pairs": "sft.formats.pairs:find_records",
    "vqa": "sft.formats.vqa:find_records",
    "edits": "sft.formats.edits:find_records",
}
FORMATS = Registry("data format", _TABLE)


def read_format(
    source: Path | str, format: str, report: ReadReport | None = None, options: ReadOptions | None = None
) -> Iterator[Document]:
    """Stream the documents of `source`, arranged as `format` (a name of `FORMATS`) says.

    Without `report`, more than 1 % of unusable records raise `BudgetError`. Raises `UsageError` for an unknown format and
    `InputError` for a source that cannot be read.
    """
    FORMATS.get(format)
    return read_documents(source, _TABLE.get(format, format), report, options)


def check(source: Path | str, format: str, options: ReadOptions | None = None) -> dict[str, Any]:
    """Read all of `source` and tell what is wrong with it, without stopping at a fault.

    Returns {"ok": n, "rejected": {REASON: n}, "problems": [{"file", "line", "field", "message"}]}; `line` is the line of a
    JSONL file, the key of a WebDataset sample, or the file of a folder. The first 100 problems are listed, all are counted.
    """
    report = FieldReport()
    for _ in read_format(source, format, report, options):
        pass
    return {"ok": report.ok, "rejected": dict(report.rejected), "problems": [dict(problem) for problem in report.located]}


@dataclass
class FieldReport(ReadReport):
    """A `ReadReport` that also says which field of a record is at fault."""

    located: list[dict[str, Any]] = field(default_factory=list)

    def reject(self, error: RecordError, file: str, where: str) -> None:
        """Count one refused record and remember its place and field."""
        super().reject(error, file, where)
        if len(self.located) < MAX_PROBLEMS:
            shown = self.problems[-1]
            line: int | str = int(where.removeprefix("line ")) if where.startswith("line ") else shown.where
            self.located.append({"file": shown.file, "line": line, "field": field_of(error), "message": shown.message})
