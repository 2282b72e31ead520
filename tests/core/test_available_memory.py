"""Available memory from the files of Linux, written out here."""

from pathlib import Path

import pytest
import torch

from cm3.core.available_memory import available_memory, host_memory

MIB = 2**20


def files(root: Path, texts: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": f"MemTotal: 4 kB\nMemAvailable:  {64 * 1024} kB\n", **texts}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {"memory.max": f"{40 * MIB}\n", "memory.current": f"{30 * MIB}\n", "memory.stat": f"anon 7\ninactive_file {8 * MIB}\n"}
V1 = {"memory.limit_in_bytes": f"{30 * MIB}", "memory.usage_in_bytes": f"{6 * MIB}", "memory.stat": "total_inactive_file 0\n"}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({}, 64),
        ({f"sys/fs/cgroup/{name}": text for name, text in V2.items()}, 18),  # cached files can be dropped
        ({f"sys/fs/cgroup/memory/{name}": text for name, text in V1.items()}, 24),
        ({"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "1\n"}, 64),
        ({"proc/self/cgroup": "0::/a/b\n", **{f"sys/fs/cgroup/a/{name}": text for name, text in V2.items()}}, 18),
        ({"sys/fs/cgroup/memory.max": "5\n", "sys/fs/cgroup/memory.current": "9\n"}, 0),  # more than the limit is in use
    ],
    ids=["no container", "version 2", "version 1", "no limit", "a group around ours", "over the limit"],
)
def test_the_smallest_limit_counts(tmp_path: Path, groups: dict[str, str], expected: int) -> None:
    assert host_memory(files(tmp_path, groups)) == expected * MIB


def test_processes_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3.core.available_memory.host_memory", lambda: 12 * MIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_memory(torch.device("cpu")) == 3 * MIB


def test_this_machine_has_some() -> None:
    assert MIB < host_memory() < 2**50
