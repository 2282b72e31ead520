"""How much memory can still be taken: of a GPU, of this machine, or of the container that this process runs in.

A container's limit stands in the files of its control group: `memory.max` of version 2, `memory.limit_in_bytes` of version 1
(kernel documentation, admin-guide/cgroup-v2 and cgroup-v1/memory). What the kernel caches of files counts as used there, but
its inactive part is given back as soon as it is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NO_LIMIT = 1 << 60  # where nobody can say
# version: root of the groups, limit, usage, and what of it is cached files that can be dropped
_VERSIONS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory(device: torch.device) -> int:
    """Free bytes of the device; on a CPU the least that machine and container can still give, shared by its processes."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def host_memory(root: Path = Path("/")) -> int:
    """Bytes that the system under `root` can still give to this process: ≥ 0, or `NO_LIMIT` where nobody can say."""
    return max(0, min(_of_machine(root), *_of_groups(root)))


def _of_machine(root: Path) -> int:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return NO_LIMIT


def _of_groups(root: Path) -> Iterator[int]:
    """What is left of the limits of this process's group and of all groups around it."""
    yield NO_LIMIT
    own = {line.split(":", 2)[2].strip("/") for line in _lines(root / "proc/self/cgroup") if line.count(":") >= 2}
    places = {place for path in own for place in (Path(path), *Path(path).parents)} | {Path()}
    for base, limit, usage, cached in _VERSIONS:
        for place in places:
            group = root / base / place
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and used is not None:
                yield (
                    most - used + sum(int(line.split()[1]) for line in _lines(group / "memory.stat") if line.split()[0] == cached)
                )


def _number(path: Path) -> int | None:
    """The number in a file; None without one, or where it says "max"."""
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
