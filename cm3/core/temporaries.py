"""What a process puts beside a path before it counts, named so that only those of dead processes are cleared away.

    .tmp-NAME-OWNER      being written                .old-NAME-OWNER      moved aside while a newer one takes its place

OWNER says host, boot, PID namespace and PID. On a disk that several machines or containers share, a PID alone says nothing:
whoever writes there is no process of ours, and looks dead from here.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"\.(?P<what>tmp|old)-(?P<name>.+)-(?P<host>\w{8})\.(?P<boot>\w{8})\.(?P<namespace>\d+)\.(?P<pid>\d+)")


@dataclass(frozen=True)
class Owner:
    """A process: `host` and `boot` (eight hexadecimal digits of a SHA-256), `namespace` (0 where the system has none), `pid`."""

    host: str
    boot: str
    namespace: int
    pid: int

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(*_place(), os.getpid())

    @property
    def is_dead(self) -> bool:
        """Whether it surely runs no more: of an earlier boot of this host, or of this namespace and not there."""
        here = Owner.here()
        if self.host == here.host and self.boot != here.boot:
            return True
        return (self.host, self.namespace) == (here.host, here.namespace) and not _alive(self.pid)

    def __str__(self) -> str:
        return f"{self.host}.{self.boot}.{self.namespace}.{self.pid}"


def temporary(path: Path) -> Path:
    """Where this process writes what becomes `path`."""
    return path.with_name(f".tmp-{path.name}-{Owner.here()}")


def aside(path: Path) -> Path:
    """Where this process moves what stands at `path` while a newer one takes its place."""
    return path.with_name(f".old-{path.name}-{Owner.here()}")


def is_temporary_of(entry: str, name: str) -> bool:
    """Whether the file name `entry` is one that some process writes `name` under."""
    match = _NAME.fullmatch(entry)
    return match is not None and (match["what"], match["name"]) == ("tmp", name)


def sweep(parent: Path | str) -> list[Path]:
    """Clear what dead processes left in `parent`: remove their temporary folders, put back what they moved aside."""
    swept = []
    for entry in Path(parent).glob(".*"):
        match = _NAME.fullmatch(entry.name)
        if match is not None and entry.is_dir() and _owner(match).is_dead:
            clear(entry)
            swept.append(entry)
    return swept


def clear(entry: Path) -> None:
    """Remove a temporary folder, or put a folder that was moved aside back into its place if that is free."""
    match = _NAME.fullmatch(entry.name)
    if match is not None and match["what"] == "old" and entry.exists() and not entry.with_name(match["name"]).exists():
        os.rename(entry, entry.with_name(match["name"]))
    else:
        shutil.rmtree(entry, ignore_errors=True)


def _owner(match: re.Match[str]) -> Owner:
    return Owner(match["host"], match["boot"], int(match["namespace"]), int(match["pid"]))


@functools.cache
def _place() -> tuple[str, str, int]:
    """Host, boot and PID namespace of this process; where the system names no boot, all are one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        boot = ""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        namespace = 0
    host, boot = (hashlib.sha256(text.encode()).hexdigest()[:8] for text in (socket.gethostname(), boot))
    return host, boot, namespace


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
