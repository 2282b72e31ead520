"""Artefact folders: written whole or not at all, and checked byte by byte when they are read.

A folder is built as a hidden sibling (`.tmp-NAME-PID`), every file is synced, `manifest.json` with the size and SHA-256
of every file is written last, and one rename makes it visible. An older folder of the same name is moved aside first and
put back if the rename fails. Neither safetensors nor NumPy notices a flipped bit; the manifest does.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cm3.core.errors import ArtefactError, StorageError

MANIFEST = "manifest.json"
_VERSIONED_PACKAGES = ("cm3-multimodal", "torch", "transformers", "tokenizers", "faiss-cpu", "vector-quantize-pytorch", "numpy")
_ASIDE = re.compile(r"^\.(tmp|old)-(?P<name>.+)-(?P<pid>\d+)$")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of an artefact."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an artefact folder says of itself.

    kind: what it is ("image_tokenizer", "model", "checkpoint" …); files: relative path → entry, the manifest excluded;
    versions: package → version at writing; provenance: free JSON of the writer (configuration, parents, figures).
    """

    kind: str
    files: Mapping[str, FileEntry]
    versions: Mapping[str, str]
    provenance: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the table of files: equal content, equal fingerprint."""
        table = "".join(f"{name}\0{entry.size}\0{entry.sha256}\n" for name, entry in sorted(self.files.items()))
        return hashlib.sha256(table.encode()).hexdigest()


@contextmanager
def writing(path: Path | str, kind: str, provenance: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it becomes `path` (replacing an older artefact), else it is removed.

    Raises `StorageError` when the disk is full, the place cannot be written, or something that is no artefact stands there;
    what stood there then still stands.
    """
    path = Path(path).absolute()
    if path.exists() and not (path / MANIFEST).is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise StorageError(f"{path} exists and is not an artefact folder, so it is not replaced; choose another place or move it")
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary.mkdir()
    try:
        with _full_disk_errors(path):
            yield temporary
        with storage_errors(path):
            _write_manifest(temporary, kind, provenance or {})
            _publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(path: Path | str, kind: str | None = None, hashes: bool = True) -> Manifest:
    """Check every file of the artefact at `path` against its manifest and return the manifest.

    `kind` is the kind it must be; `hashes=False` checks presence and size only. Raises `ArtefactError` naming the
    first file that is missing, extra or different.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if kind is not None and manifest.kind != kind:
        raise ArtefactError(f"{path} is an artefact of kind {manifest.kind!r}, expected {kind!r}; check the path")
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    for name, entry in sorted(manifest.files.items()):
        if name not in present:
            raise ArtefactError(f"{path} is incomplete: {name} is missing; restore it from a copy or make the folder again")
        if (size := (path / name).stat().st_size) != entry.size:
            raise ArtefactError(f"{path} is damaged: {name} has {size} bytes, expected {entry.size}; restore or remake it")
        if hashes and hash_file(path / name) != entry.sha256:
            raise ArtefactError(f"{path} is damaged: the content of {name} differs from its manifest; restore or remake it")
    if extra := sorted(present - set(manifest.files)):
        raise ArtefactError(f"{path} holds a file its manifest does not name: {extra[0]}; remove it")
    return manifest


def read_manifest(path: Path | str) -> Manifest:
    """The manifest of the artefact at `path`, without checking the files. Raises `ArtefactError` if there is none."""
    path = Path(path)
    if not path.is_dir():
        raise ArtefactError(f"{path} is not an artefact folder: no such folder; check the path")
    try:
        raw = json.loads((path / MANIFEST).read_text("utf-8"))
        files = {name: FileEntry(int(entry["size"]), str(entry["sha256"])) for name, entry in raw["files"].items()}
        return Manifest(str(raw["kind"]), files, dict(raw["versions"]), dict(raw["provenance"]))
    except FileNotFoundError:
        raise ArtefactError(f"{path} is not an artefact folder: it has no {MANIFEST}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(f"{path / MANIFEST} cannot be read: {error}; restore it from a copy") from None


def fingerprint(path: Path | str) -> str:
    """The fingerprint that the manifest at `path` states (see `Manifest.fingerprint`)."""
    return read_manifest(path).fingerprint


def sweep(parent: Path | str) -> list[Path]:
    """Clear what dead processes left in `parent`: remove their temporary folders, put back what they moved aside."""
    swept = []
    for entry in Path(parent).glob(".*"):
        match = _ASIDE.match(entry.name)
        if match is None or not entry.is_dir() or _alive(int(match["pid"])):
            continue
        target = entry.with_name(match["name"])
        if match[1] == "old" and not target.exists():
            os.rename(entry, target)
        else:
            shutil.rmtree(entry, ignore_errors=True)
        swept.append(entry)
    return swept


def hash_file(path: Path | str) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically (temporary sibling, sync, rename). Raises `StorageError` when the place cannot be written."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path | str, text: str) -> None:
    """Write a UTF-8 file atomically (temporary sibling, sync, rename); see `write_json`."""
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    with storage_errors(path):
        try:
            with open(temporary, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read_json(path: Path | str) -> Any:
    """Read a JSON file. Raises `ArtefactError` when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read as JSON: {error}") from None


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn "disk full", "read-only" and "not permitted" below this block into a `StorageError` about `path`."""
    try:
        with _full_disk_errors(path):
            yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise StorageError(f"{path} cannot be written: {error.strerror}; choose another place") from error
        raise


@contextmanager
def _full_disk_errors(path: Path) -> Iterator[None]:
    """A full disk as `StorageError`, also where a library reports it in its own exception (safetensors does)."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            free = _free_bytes(path)
            raise StorageError(f"no space left to write {path} ({free:,} bytes free); free some, or write elsewhere") from error
        raise


def _write_manifest(folder: Path, kind: str, provenance: Mapping[str, Any]) -> None:
    files = {}
    for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        _sync(file)
        files[str(file.relative_to(folder))] = {"size": file.stat().st_size, "sha256": hash_file(file)}
    manifest = {"kind": kind, "files": files, "versions": dict(_versions()), "provenance": dict(provenance)}
    write_json(folder / MANIFEST, manifest)
    for directory in (folder, *(entry for entry in folder.rglob("*") if entry.is_dir())):
        _sync(directory)


def _publish(temporary: Path, path: Path) -> None:
    aside = path.with_name(f".old-{path.name}-{os.getpid()}")
    if path.exists():
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        if aside.exists():
            os.rename(aside, path)
        raise
    _sync(path.parent)
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@functools.cache
def _versions() -> dict[str, str]:
    versions = {}
    for package in _VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _free_bytes(path: Path) -> int:
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
