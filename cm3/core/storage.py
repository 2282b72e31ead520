"""Files: written whole or not at all, read with errors that say what to do.

What the operating system answers to a writer (disk full, quota, read-only, a file in the way) becomes a `StorageError`;
a JSON file that is missing or damaged becomes an `ArtefactError`. Folders are the business of `cm3.core.artefact`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm3.core import temporaries
from cm3.core.errors import ArtefactError, StorageError

RUN_LOCK = "run.lock"  # a folder with it is the place of a run of ours
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_WORDS = re.compile(r"No space left on device|Disk quota exceeded|File too large|requested and \d+ written")  # last: NumPy's
_REASONS = {
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EISDIR: "a folder stands where a file is needed",
}
_LONGEST_PATH = 200  # of a path in a message: whoever mixes up arguments gives whole texts as paths


def hash_file(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically (temporary sibling, sync, rename). Raises `StorageError` when the place cannot be written."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file atomically; see `write_json`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write a file atomically: an older one stands until the new one is whole. Raises as `write_json` does."""
    path = Path(path)
    with storage_errors(path):
        temporary = temporaries.temporary(path)
        try:
            with open(temporary, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path | str) -> Any:
    """Read a JSON file. Raises `ArtefactError` when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing; check the path, or restore it from a copy") from None
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror}; check the path and its permissions") from None
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} cannot be read as JSON: {error}; restore it from a copy") from None


def require_writable(folder: Path | str) -> None:
    """Raise `StorageError` if files can surely not be written below `folder`, which need not exist; nothing is made."""
    folder = Path(folder).absolute()
    with storage_errors(folder):
        existing = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if not os.path.isdir(existing):
            raise NotADirectoryError(errno.ENOTDIR, "")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "the place is read-only, or another user's")


def sibling(path: Path | str, prefix: str = "", suffix: str = "") -> Path:
    """The path beside `path` whose name has a prefix and a suffix more. Raises `StorageError` for a path without a name."""
    path = Path(path)
    if not path.name:  # "." or "/"
        path = path.absolute()
    if not path.name:
        raise StorageError(f"{path} cannot be written: it is the root of all files; choose another place")
    return path.with_name(f"{prefix}{path.name}{suffix}")


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system answers to the writing in this block into a `StorageError` about `path`."""
    try:
        with full_disk_errors(path):
            yield
    except OSError as error:
        if error.errno is None:  # a library's own, about something else
            raise
        reason = _REASONS.get(error.errno, error.strerror)
        raise StorageError(f"{str(path)[:_LONGEST_PATH]} cannot be written: {reason}; choose another place") from error


@contextmanager
def full_disk_errors(path: Path) -> Iterator[None]:
    """A full disk as `StorageError`, also where a library reports it in its own exception (safetensors, NumPy, faiss do)."""
    try:
        yield
    except Exception as error:
        if (isinstance(error, OSError) and error.errno in _FULL) or _FULL_WORDS.search(str(error)):
            free = _free_bytes(path)
            raise StorageError(f"no space left to write {path} ({free:,} bytes free); free some, or write elsewhere") from error
        raise


def sync(path: Path) -> None:
    """Have a file or folder reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
