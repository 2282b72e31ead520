"""Artefact folders: written whole or not at all, and checked byte by byte when they are read.

A folder is built as a hidden sibling (`cm3.core.temporaries`), every file is synced, `manifest.json` with the size and SHA-256
of every file is written last, and one rename makes it visible. An older folder of the same name is moved aside first and
put back if the rename fails. Neither safetensors nor NumPy notices a flipped bit; the manifest does. What is replaced while
others read it is published by generations (`publishing`, `cm3.core.generations`); every function here follows `CURRENT`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cm3.core import temporaries
from cm3.core.errors import ArtefactError, StorageError
from cm3.core.generations import current, is_generations, publish_generation
from cm3.core.storage import (
    full_disk_errors,
    hash_file,
    read_json,
    require_writable,
    storage_errors,
    sync,
    write_bytes,
    write_json,
    write_text,
)
from cm3.core.temporaries import sweep

__all__ = [
    "MANIFEST",
    "FileEntry",
    "Manifest",
    "current",
    "fingerprint",
    "hash_file",
    "publishing",
    "read_json",
    "read_manifest",
    "require_replaceable",
    "require_writable",
    "storage_errors",
    "sweep",
    "verify",
    "write_bytes",
    "write_json",
    "write_text",
    "writing",
]

MANIFEST = "manifest.json"
_VERSIONED_PACKAGES = ("cm3-multimodal", "torch", "transformers", "tokenizers", "faiss-cpu", "vector-quantize-pytorch", "numpy")
_FIELDS = frozenset({"kind", "files", "versions", "provenance", "checksum"})


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
def writing(
    path: Path | str,
    kind: str,
    provenance: Mapping[str, Any] | None = None,
    publish: Callable[[Path, Path], None] | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it becomes `path` (replacing an older artefact), else it is removed.

    publish: puts the finished folder into its place; by default one rename.

    Raises `StorageError` when the disk is full, the place cannot be written, or something that is no artefact of this kind
    stands there; what stood there then still stands. A path has one writer at a time.
    """
    path = Path(path).absolute()
    if path.is_symlink():
        path = path.resolve()  # a link to a larger disk stays one
    with storage_errors(path):
        require_replaceable(path, kind)
        temporary = temporaries.temporary(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        for entry in (temporary, temporaries.aside(path)):
            temporaries.clear(entry)  # of a dead process that had our number
        temporary.mkdir()
    try:
        with full_disk_errors(path):
            yield temporary
        with storage_errors(path):
            _write_manifest(temporary, kind, provenance or {})
            (publish or _replace)(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publishing(
    path: Path | str, kind: str, provenance: Mapping[str, Any] | None = None, base: Path | None = None
) -> AbstractContextManager[Path]:
    """Like `writing`, but readers of the older artefact keep it, and there is no moment without one (see `generations`).

    base: the folder that the new one is derived from; if another process published since then, `RunLockedError`.
    An artefact that stands at `path` without generations, as inside a model folder, stays so.
    """
    if (Path(path) / MANIFEST).is_file():
        return writing(path, kind, provenance)
    return writing(path, kind, provenance, functools.partial(publish_generation, base=base))


def require_replaceable(path: Path | str, kind: str) -> None:
    """Raise `StorageError` unless an artefact of `kind` may be written to `path`; asked before long work, nothing is made.

    Nothing, an empty folder, or an artefact of the same kind may be replaced: nothing else that a user has, and no part of a
    larger artefact, whose manifest would then be wrong.
    """
    path = Path(path).absolute()
    require_writable(path.parent)
    if (path.parent / MANIFEST).is_file() and any(name.startswith(f"{path.name}/") for name in read_manifest(path.parent).files):
        raise StorageError(
            f"{path} is a part of the artefact {path.parent}, whose manifest names every file of it, so it is not replaced; "
            "copy it to another place and change the copy"
        )
    with storage_errors(path):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            return
    if not (path / MANIFEST).is_file() and not (path.is_dir() and is_generations(path)):
        raise StorageError(f"{path} exists and is not an artefact folder, so it is not replaced; choose another place or move it")
    try:
        standing = read_manifest(path).kind
    except ArtefactError:  # a damaged one is there to be made again
        return
    if standing != kind:
        raise StorageError(
            f"{path} is an artefact of kind {standing!r}, so it is not replaced by one of kind {kind!r}; "
            "choose another place or move it"
        )


def verify(path: Path | str, kind: str | None = None, hashes: bool = True) -> Manifest:
    """Check every file of the artefact at `path` against its manifest and return the manifest.

    `kind` is the kind it must be; `hashes=False` checks presence and size only. Raises `ArtefactError` naming the
    first file that is missing, extra or different; hidden files (".DS_Store") may be there, as nothing reads them.
    """
    path = current(path)
    manifest = read_manifest(path)
    if kind is not None and manifest.kind != kind:
        raise ArtefactError(f"{path} is an artefact of kind {manifest.kind!r}, expected {kind!r}; check the path")
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()} - {MANIFEST}
    for name, entry in sorted(manifest.files.items()):
        if name not in present:
            raise ArtefactError(f"{path} is incomplete: {name} is missing; restore it from a copy or make the folder again")
        if (size := (path / name).stat().st_size) != entry.size:
            raise ArtefactError(f"{path} is damaged: {name} has {size} bytes, expected {entry.size}; restore or remake it")
        if hashes and _readable_hash(path / name) != entry.sha256:
            raise ArtefactError(f"{path} is damaged: the content of {name} differs from its manifest; restore or remake it")
    if extra := sorted(name for name in present - set(manifest.files) if not _is_hidden(name)):
        raise ArtefactError(f"{path} holds a file its manifest does not name: {extra[0]}; remove it")
    return manifest


def read_manifest(path: Path | str) -> Manifest:
    """The manifest of the artefact at `path`, without checking the files. Raises `ArtefactError` if there is none."""
    path = current(path)
    if not path.is_dir():
        what = "it is a file" if path.exists() else "no such folder"
        raise ArtefactError(f"{path} is not an artefact folder: {what}; check the path")
    if not (path / MANIFEST).exists():
        raise ArtefactError(f"{path} is not an artefact folder: it has no {MANIFEST}; check the path, or restore it from a copy")
    raw = read_json(path / MANIFEST)
    try:
        stated = raw.get("checksum")
        if set(raw) - _FIELDS or (stated is not None and stated != _checksum(raw)):
            raise ArtefactError(f"{path} is damaged: {MANIFEST} is not as it was written; restore it from a copy")
        files = {name: FileEntry(int(entry["size"]), str(entry["sha256"])) for name, entry in raw["files"].items()}
        return Manifest(str(raw["kind"]), files, dict(raw["versions"]), dict(raw["provenance"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtefactError(f"{path / MANIFEST} does not say what an artefact folder holds; restore it from a copy") from None


def fingerprint(path: Path | str) -> str:
    """The fingerprint that the manifest at `path` states (see `Manifest.fingerprint`)."""
    return read_manifest(path).fingerprint


def _write_manifest(folder: Path, kind: str, provenance: Mapping[str, Any]) -> None:
    files = {}
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666  # some libraries write files that nobody else may read
    for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        file.chmod(mode)
        sync(file)
        files[str(file.relative_to(folder))] = {"size": file.stat().st_size, "sha256": hash_file(file)}
    manifest = {"kind": kind, "files": files, "versions": dict(_versions()), "provenance": dict(provenance)}
    write_json(folder / MANIFEST, {**manifest, "checksum": _checksum(manifest)})
    for directory in (folder, *(entry for entry in folder.rglob("*") if entry.is_dir())):
        sync(directory)


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over a manifest as JSON values, apart from the checksum in it."""
    content = json.loads(json.dumps({name: value for name, value in manifest.items() if name != "checksum"}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _readable_hash(file: Path) -> str:
    try:
        return hash_file(file)
    except OSError as error:
        reason = f"{file} cannot be read: {error.strerror}"
        raise ArtefactError(f"{reason}; check its permissions, or restore it from a copy") from None


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def _replace(temporary: Path, path: Path) -> None:
    aside = temporaries.aside(path)
    if path.exists():
        os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:  # also Ctrl-C between the two
        if aside.exists() and not path.exists():
            os.rename(aside, path)
        raise
    sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


@functools.cache
def _versions() -> dict[str, str]:
    versions = {}
    for package in _VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
