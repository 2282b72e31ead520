"""The loop that all formats share: the account, the budget, streaming, and the wild."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cm3.core.errors import BudgetError
from cm3.documents import Document, ReadReport, RecordError, RejectReason, TextSegment, read_documents
from cm3.documents.records import ReadOptions, Record


def lines(path: Path, good: int, bad: int) -> Path:
    path.write_text("\n".join([json.dumps({"text": f"t{number}"}) for number in range(good)] + ["{"] * bad))
    return path


def test_without_a_report_few_rejections_are_logged_and_many_raise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = lines(tmp_path / "few.jsonl", good=99, bad=1)
    with caplog.at_level(logging.WARNING):
        assert len(list(read_documents(few))) == 99
    assert "1 of 100 records rejected: {'bad_json': 1}" in caplog.text
    with pytest.raises(BudgetError, match=r"2 of 100 .*few\.jsonl line 99: this is not JSON"):
        list(read_documents(lines(few, good=98, bad=2)))


def test_with_a_report_the_caller_decides(tmp_path: Path) -> None:
    report = ReadReport()
    assert len(list(read_documents(lines(tmp_path / "a.jsonl", good=1, bad=9), report=report))) == 1
    assert (report.seen, report.ok, report.rejected) == (10, 1, {"bad_json": 9})
    report.check(budget=0.9)


def test_one_report_can_cover_several_sources(tmp_path: Path) -> None:
    report = ReadReport()
    for name in ("a.jsonl", "b.jsonl"):
        list(read_documents(lines(tmp_path / name, good=3, bad=1), report=report))
    assert (report.seen, report.ok) == (8, 6)


def test_reading_streams(tmp_path: Path) -> None:
    documents = read_documents(lines(tmp_path / "a.jsonl", good=5, bad=5))
    assert next(documents).text == "t0"
    documents.close()  # type: ignore[attr-defined]


def test_a_reader_from_outside_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(number: int) -> Document:
        if number % 2:
            raise RecordError(RejectReason.BAD_RECORD, "odd")
        return Document(str(number), (TextSegment("even"),))

    def find_records(source: Path | str, options: ReadOptions) -> Iterator[Record]:
        return (Record(str(source), f"number {number}", partial(build, number)) for number in range(4))

    module = ModuleType("somebodys_reader")
    module.find_records = find_records  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somebodys_reader", module)
    report = ReadReport()
    documents = list(read_documents(tmp_path, "somebodys_reader:find_records", report))
    assert [document.id for document in documents] == ["0", "2"]
    assert [problem.where for problem in report.problems] == ["number 1", "number 3"]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.binary(max_size=40), st.from_regex(rb'\{"(text|image|id|segments|meta)": .{0,20}\}')), max_size=8))
def test_no_bytes_break_the_account(tmp_path_factory: pytest.TempPathFactory, wild: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("wild") / "wild.jsonl"
    path.write_bytes(b"\n".join([*wild, b'{"text": "the last"}']))
    report = ReadReport()
    documents = list(read_documents(path, report=report))
    assert report.seen == report.ok + report.num_rejected
    assert documents[-1].text == "the last"
