"""How commands answer: a line for people, or JSON for programs, on stdout."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cm3.core.storage import storage_errors, write_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

    from cm3.documents.report import ReadReport

Budget = Annotated[float, typer.Option(min=0, max=1, help="The share of records that may be unusable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout; progress stays on stderr.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Settings that replace the file's.")]


def emit(value: Any, text: str, as_json: bool) -> None:
    """Print `value` as JSON, or `text`; of several processes that train together, only the first speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    plain_ascii = not (sys.stdout.encoding or "").lower().startswith("utf")
    try:
        print(json.dumps(value, ensure_ascii=plain_ascii, default=_plain) if as_json else text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing left to say


def account_of(report: ReadReport) -> dict[str, Any]:
    """What became of the records that a command read."""
    return {"seen": report.seen, **report.to_json()}


def rejections(rejected: Mapping[str, int]) -> str:
    """How many records were rejected for which reasons, in words."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(rejected.items()))
    return f"{sum(rejected.values())} rejected{f' ({reasons})' if reasons else ''}"


def say(line: str) -> None:
    """A line for people about what is going on, on stderr."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def warnings_said() -> Iterator[None]:
    """Warnings as one line each on stderr, for people, instead of Python's two with file names."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"cm3: note: {message}")
        yield


def write_picture(image: Image, path: Path) -> str:
    """Write `image` as PNG, whole or not at all, and make the folder it goes to; returns the path."""
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, encoded.getvalue())
    return str(path)


def table(rows: list[dict[str, Any]]) -> str:
    """Records as aligned columns with a header."""
    if not rows:
        return "nothing"
    names = list(rows[0])
    cells = [names, *([_shown(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")
