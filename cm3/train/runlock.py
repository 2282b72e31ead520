"""One process per run folder: an advisory lock that the kernel releases when its holder dies, however it dies.

The lock file stays behind with the holder's pid in it; what counts is the lock on it, so a stale file is simply taken over.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cm3.core.artefact import storage_errors
from cm3.core.errors import RunLockedError
from cm3.core.storage import RUN_LOCK

LOCK_NAME = RUN_LOCK


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` (made if missing) for the block. Raises `RunLockedError` naming the process that has it."""
    with storage_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            raise RunLockedError(f"{run_dir} is in use by {holder}; wait for it, stop it, or choose another run folder") from None
        with storage_errors(run_dir):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"  # it has the lock, but has not written its name yet
