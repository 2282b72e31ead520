"""The account of a reading: both sides are counted apart and must agree; the budget is enforced."""

from __future__ import annotations

import json

import pytest

from cm3.core.errors import BudgetError, CM3Error
from cm3.documents import ReadReport, RecordError, RejectReason
from cm3.documents.report import MAX_PROBLEMS


def report(ok: int, **rejected: int) -> ReadReport:
    made = ReadReport(seen=ok + sum(rejected.values()), ok=ok)
    for reason, count in rejected.items():
        for number in range(count):
            made.reject(RecordError(RejectReason(reason), f"number {number}"), "shard.tar", f"key {number}")
    return made


def test_budget_is_a_share_of_all_records() -> None:
    report(99, empty_text=1).check(budget=0.01)
    with pytest.raises(BudgetError, match="2 of 100"):
        report(98, empty_text=2).check(budget=0.01)
    report(1, empty_text=99).check(budget=0.99)
    with pytest.raises(BudgetError):
        report(100, empty_text=1).check(budget=0)
    ReadReport().check()


def test_the_five_most_frequent_reasons_are_named() -> None:
    with pytest.raises(BudgetError) as caught:
        report(0, bad_json=9, empty_text=3, missing_image=7, not_an_image=5, unsafe_key=4, truncated_image=2).check()
    assert "bad_json 9, missing_image 7, not_an_image 5, unsafe_key 4, empty_text 3)" in str(caught.value)
    assert "truncated_image" not in str(caught.value)
    assert "first: shard.tar key 0: number 0" in str(caught.value)


def test_lost_records_are_noticed() -> None:
    lost = report(5, bad_json=1)
    lost.seen += 1
    with pytest.raises(CM3Error, match="lost records: 7 seen, 5 accepted, 1 rejected"):
        lost.check(budget=1)


def test_problems_are_bounded_and_printable() -> None:
    full = report(0, bad_json=MAX_PROBLEMS + 20)
    assert len(full.problems) == MAX_PROBLEMS
    assert full.rejected == {"bad_json": MAX_PROBLEMS + 20}
    wild = ReadReport()
    wild.reject(RecordError(RejectReason.BAD_JSON, "\x1b[31m\ud800" + "x" * 10**6), "a\nb", "\0" * 500)
    problem = wild.problems[0]
    assert len(problem.message) == 200
    assert problem.message.endswith("…")
    assert all(part.isprintable() for part in (problem.file, problem.where, problem.message))
    assert json.loads(json.dumps(wild.to_json()))["problems"][0]["reason"] == "bad_json"
