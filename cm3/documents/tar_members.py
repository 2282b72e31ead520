"""Tar archives read strictly and in place: nothing is ever extracted.

Python's `tarfile` takes a cut at a member's edge, or inside a later header, for a clean end (members are then missing without
an error). So `tar_index` walks the headers itself member by member, wants every member inside the file and the end
mark (two blocks of zeros) after the last, and checks count and SHA-256 when a sidecar `NAME.tar.json` stands beside it.
Format: POSIX.1-2001 ustar/pax, GNU long names.
"""

from __future__ import annotations

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cm3.core.artefact import hash_file
from cm3.core.errors import InputError
from cm3.documents.reasons import RecordError, RejectReason

_BLOCK = 512
_END_MARK = b"\0" * (2 * _BLOCK)
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True)
class TarMember:
    """A regular file in a tar: its name, and where its bytes are."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarIndex:
    """The regular files of the tar at `path` in archive order; `truncated` says why the list may be cut short, or None."""

    path: Path
    members: tuple[TarMember, ...]
    truncated: str | None = None


def tar_index(path: Path, keep_truncated: bool = False) -> TarIndex:
    """Read all headers of the tar at `path` and check that it is whole.

    With `keep_truncated` a cut tar gives the members that are whole, and says so in `truncated`.
    Raises `RecordError` (truncated_shard, corrupt_shard), `InputError` when the file can't be opened.
    """
    try:
        with open(path, "rb") as stream:
            _check_magic(path, stream)
            index = TarIndex(path, *_walk(path, stream, os.fstat(stream.fileno()).st_size))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
    problem = index.truncated or _sidecar_problem(index)
    if problem is not None and not keep_truncated:
        raise RecordError(RejectReason.TRUNCATED_SHARD, f"{path.name} is not whole: {problem}; copy or download it again")
    return TarIndex(path, index.members, problem)


def read_member(stream: BinaryIO, member: TarMember, max_bytes: int) -> bytes:
    """The bytes of `member` of the tar open as `stream`, at most `max_bytes` + 1 of them (so that a limit can be noticed)."""
    stream.seek(member.offset)
    return stream.read(min(member.size, max_bytes + 1))


def sidecar_path(path: Path) -> Path:
    """Where the count and hash of the tar at `path` stand: `NAME.tar.json`."""
    return path.with_name(path.name + ".json")


def sidecar_json(path: Path, num_samples: int, num_members: int) -> dict[str, Any]:
    """The content of the sidecar of the finished tar at `path`."""
    return {"samples": num_samples, "members": num_members, "bytes": path.stat().st_size, "sha256": hash_file(path)}


def _walk(path: Path, stream: BinaryIO, file_size: int) -> tuple[tuple[TarMember, ...], str | None]:
    """Members that lie wholly in the file, and what is missing (None: the end mark stands where it should)."""
    members: list[TarMember] = []
    last_offset = -1
    try:
        with tarfile.open(fileobj=stream, mode="r:", errorlevel=2) as archive:
            while (info := archive.next()) is not None:
                if info.offset <= last_offset or info.size < 0:
                    raise tarfile.ReadError("a header points backwards")
                last_offset = info.offset
                if info.offset_data + info.size > file_size:
                    return tuple(members), f"{info.name!r} is cut off"
                if info.isreg() and not info.issparse():
                    members.append(TarMember(info.name, info.offset_data, info.size))
            end = archive.offset
    except (tarfile.TarError, EOFError) as error:
        if "unexpected end" in str(error) or "truncated" in str(error):
            return tuple(members), "it ends inside a member"
        raise RecordError(RejectReason.CORRUPT_SHARD, f"{path.name} is no valid tar archive: {error}") from None
    except Exception as error:  # hostile headers make tarfile raise almost anything, up to RecursionError
        raise RecordError(RejectReason.CORRUPT_SHARD, f"{path.name} is no valid tar archive: {type(error).__name__}") from None
    stream.seek(end)
    rest = stream.read(len(_END_MARK))
    if rest == _END_MARK:
        return tuple(members), None
    if rest.strip(b"\0") and len(rest) >= _BLOCK:
        raise RecordError(RejectReason.CORRUPT_SHARD, f"{path.name} is no valid tar archive: a damaged header at byte {end}")
    return tuple(members), "its end mark is missing"


def _check_magic(path: Path, stream: BinaryIO) -> None:
    start = stream.read(2)
    stream.seek(0)
    if start in _COMPRESSED:
        message = f"{path.name} is compressed ({_COMPRESSED[start]}); decompress it first: pictures do not shrink anyway"
        raise RecordError(RejectReason.CORRUPT_SHARD, message)
    if not start:
        raise RecordError(RejectReason.TRUNCATED_SHARD, f"{path.name} is empty (0 bytes); copy or download it again")


def _sidecar_problem(index: TarIndex) -> str | None:
    sidecar = sidecar_path(index.path)
    if not sidecar.is_file():
        return None
    try:
        stated = json.loads(sidecar.read_text("utf-8"))
        count, size, digest = stated["members"], stated["bytes"], stated["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not a sidecar of ours
    if size != (actual := index.path.stat().st_size):
        return f"it has {actual:,} bytes, {sidecar.name} says {size:,}"
    if count != len(index.members):
        return f"it has {len(index.members)} members, {sidecar.name} says {count}"
    return None if digest == hash_file(index.path) else f"its SHA-256 differs from that in {sidecar.name}"
