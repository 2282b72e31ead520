"""Folders published by generations: what readers hold stays as it is while a newer one takes its place.

    bank/
      CURRENT                 the name of the generation that counts, "generation-000007"
      generation-000007/      an artefact folder

A new generation is renamed into the folder whole, then one rename of `CURRENT` makes it the one that counts: a process that
dies at any moment leaves the old or the new one. Readers hold a shared lock on the folder of their generation, which the
kernel releases when they close it or die; a publisher removes older generations that nobody holds.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cm3.core.errors import ArtefactError, RunLockedError
from cm3.core.storage import storage_errors, sync, write_text
from cm3.core.temporaries import is_temporary_of

CURRENT = "CURRENT"
_NAME = re.compile(r"generation-(\d{6,12})")
_ATTEMPTS = 1000  # of a reader that is overtaken by publishers: each attempt takes microseconds


class Hold:
    """A generation that a reader keeps from being removed, until `release` or until nobody refers to this object."""

    def __init__(self, folder: Path, descriptor: int | None) -> None:
        self.folder = folder
        self._finalizer = None if descriptor is None else weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """Let it be removed."""
        if self._finalizer is not None:
            self._finalizer()


def current(path: Path | str) -> Path:
    """The folder of the generation that counts; `path` itself where nothing is published by generations.

    Raises `ArtefactError` for a damaged `CURRENT`, or one that names a generation that is not there.
    """
    path = Path(path)
    name = _current_name(path)
    if name is None:
        return path
    if not (path / name).is_dir() and _current_name(path) == name:  # else it was replaced in between
        raise ArtefactError(f"{path} is incomplete: {CURRENT} names {name}, which is missing; restore it or make it again")
    return path / name


def hold(path: Path | str) -> Hold:
    """Hold the generation of `path` that counts. Raises as `current` does."""
    path = Path(path)
    for _ in range(_ATTEMPTS):
        folder = current(path)
        if folder == path:
            return Hold(path, None)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # removed since its name was read
        if _lock(descriptor, fcntl.LOCK_SH) and _is_at(descriptor, folder):
            return Hold(folder, descriptor)
        os.close(descriptor)
    raise ArtefactError(f"{path} cannot be opened: its generations are removed as fast as they are read; try again")


def is_generations(path: Path) -> bool:
    """Whether `path` is a folder of generations, also one whose first publishing was cut short."""
    names = os.listdir(path)
    return CURRENT in names or all(_NAME.fullmatch(name) or is_temporary_of(name, CURRENT) for name in names)


def publish_generation(finished: Path, path: Path, base: Path | None = None) -> None:
    """Make the complete folder `finished` the generation of `path` that counts, and remove those that nobody holds.

    base: the generation that `finished` was derived from. Raises `RunLockedError` if it is not the one that counts any more.
    """
    path.mkdir(exist_ok=True)
    with _alone(path):
        if base is not None and current(path).resolve() != base.resolve():  # either may be relative, or go through a link
            raise RunLockedError(f"{path} was changed by another process meanwhile; nothing is published, run the command again")
        name = f"generation-{1 + max(_numbers(path), default=0):06d}"
        os.rename(finished, path / name)
        try:
            sync(path)
            write_text(path / CURRENT, f"{name}\n")
        except BaseException:  # a full disk, or Ctrl-C
            shutil.rmtree(path / name, ignore_errors=True)
            raise
        sync(path)
        _retire(path, name)
    sync(path.parent)


def _current_name(path: Path) -> str | None:
    if not os.path.isfile(path / CURRENT):  # unlike Path.is_file, also for what is no possible path
        return None
    try:
        text = (path / CURRENT).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    name = text.removesuffix("\n")
    if not _NAME.fullmatch(name) or name == text:  # cut short
        raise ArtefactError(f"{path / CURRENT} is damaged: it names no generation; write the name of one into it, or restore it")
    return name


def _numbers(path: Path) -> list[int]:
    return [int(match[1]) for name in os.listdir(path) if (match := _NAME.fullmatch(name))]


def _retire(path: Path, kept: str) -> None:
    """Remove the other generations, apart from those that a reader holds, and what died publishers left."""
    for name in sorted(os.listdir(path)):
        if is_temporary_of(name, CURRENT):
            (path / name).unlink(missing_ok=True)
        elif _NAME.fullmatch(name) and name != kept:
            descriptor = os.open(path / name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _lock(descriptor, fcntl.LOCK_EX):
                    shutil.rmtree(path / name, ignore_errors=True)
            finally:
                os.close(descriptor)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One publisher at a time; the others wait, as publishing takes milliseconds."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Whether the lock was given at once; where the file system knows no locks, readers go on and nothing is removed."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError) and kind == fcntl.LOCK_SH
    return True


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except OSError:
        return False
