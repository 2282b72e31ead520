"""What a source names: one path, or several shards as a glob or a brace list, always in a fixed order."""

from __future__ import annotations

import re
from pathlib import Path

from cm3.core.errors import InputError

_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_PATHS = 1_000_000


def expand_source(source: Path | str) -> list[Path]:
    """The existing paths that `source` names: itself; "a/{000..099}.tar", "a/{x,y}.tar"; or a glob, sorted.

    A name that exists as it is written is never expanded. Raises `InputError` when something named is not there.
    """
    text = str(source)
    if "\0" in text:
        raise InputError(f"{text[:200]!r} cannot be a path: it holds a NUL")
    try:
        if Path(text).exists():
            return [Path(text)]
        paths = [path for name in _expand_braces(text) for path in _expand_glob(name)]
        missing = next((path for path in paths if not path.exists()), None)
    except OSError as error:  # a name too long for the file system
        raise InputError(f"{text[:200]!r} cannot be a path: {error.strerror}") from None
    if missing is not None:
        raise InputError(f"there is nothing at {missing}; check the path")
    return paths


def _expand_braces(text: str) -> list[str]:
    match = _BRACES.search(text)
    if match is None:
        return [text]
    if bounds := _RANGE.fullmatch(match[1]):
        first, last = int(bounds[1]), int(bounds[2])
        if last < first or last - first >= _MAX_PATHS:
            raise InputError(f"{{{match[1]}}} is no range from a smaller to a larger number")
        options = [f"{number:0{len(bounds[1])}d}" for number in range(first, last + 1)]
    else:
        options = match[1].split(",")
    return [expanded for option in options for expanded in _expand_braces(text[: match.start()] + option + text[match.end() :])]


def _expand_glob(name: str) -> list[Path]:
    path = Path(name)
    if not any(character in name for character in "*?["):
        return [path]
    fixed = next(parent for parent in path.parents if not any(character in str(parent) for character in "*?["))
    found = sorted(fixed.glob(str(path.relative_to(fixed)))) if fixed.is_dir() else []
    if not found:
        raise InputError(f"no file fits {name}; check the pattern")
    return found
