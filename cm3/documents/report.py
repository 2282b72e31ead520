"""The account of a reading: nothing is dropped silently.

Every record that a reader meets ends as exactly one of accepted or rejected-for-a-reason; `ReadReport` counts both sides
on its own and refuses to balance otherwise. `check` turns too many rejections into a `BudgetError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cm3.core.errors import BudgetError, CM3Error
from cm3.documents.reasons import RecordError, RejectReason

MAX_PROBLEMS = 100
_MAX_MESSAGE = 200


@dataclass(frozen=True)
class Problem:
    """One rejected record: the file (or shard), the line or member in it, the reason, and a message of bounded length."""

    file: str
    where: str
    reason: RejectReason
    message: str


@dataclass
class ReadReport:
    """What became of the records of a source: seen = ok + sum of rejected, always.

    `problems` holds the first `MAX_PROBLEMS` rejections in full; the counts are complete.
    """

    seen: int = 0
    ok: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def num_rejected(self) -> int:
        """All rejections, over all reasons."""
        return sum(self.rejected.values())

    def reject(self, error: RecordError, file: str, where: str) -> None:
        """Count one refused record and remember where it was."""
        self.rejected[error.reason.value] = self.rejected.get(error.reason.value, 0) + 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(_printable(file), _printable(where), error.reason, _printable(str(error))))

    def take_back(self, error: RecordError, file: str, where: str = "") -> None:
        """Move one accepted record to the refused ones: what a reader left undecoded turned out to be unusable."""
        self.ok -= 1
        self.reject(error, file, where)

    def check(self, budget: float = 0.01) -> None:
        """Raise `BudgetError`, naming the five most frequent reasons, if more than `budget` of the records were rejected."""
        self.check_balance()
        if self.num_rejected <= budget * self.seen:
            return
        top = sorted(self.rejected.items(), key=lambda item: (-item[1], item[0]))[:5]
        reasons = ", ".join(f"{reason} {count}" for reason, count in top)
        first = self.problems[0] if self.problems else None
        example = f"; first: {first.file} {first.where}: {first.message}" if first else ""
        raise BudgetError(
            f"{self.num_rejected} of {self.seen} records were rejected ({reasons}), "
            f"the budget is {budget:.2%}{example}; repair or remove those records"
        )

    def check_balance(self) -> None:
        """Raise `CM3Error` if the two sides of the account differ: then a reader has lost records."""
        if self.seen != self.ok + self.num_rejected:
            raise CM3Error(f"the reader lost records: {self.seen} seen, {self.ok} accepted, {self.num_rejected} rejected")

    def to_json(self) -> Mapping[str, Any]:
        """The report as JSON values: {"ok", "rejected": {REASON: n}, "problems": [{"file", "where", "reason", "message"}]}."""
        problems = [
            {"file": problem.file, "where": problem.where, "reason": problem.reason.value, "message": problem.message}
            for problem in self.problems
        ]
        return {"ok": self.ok, "rejected": dict(self.rejected), "problems": problems}


def _printable(text: str) -> str:
    """Bounded and free of control characters and surrogates: messages quote data that nobody has checked."""
    start = text[: _MAX_MESSAGE + 1]
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in start)
    return shown if len(shown) <= _MAX_MESSAGE else shown[: _MAX_MESSAGE - 1] + "…"
