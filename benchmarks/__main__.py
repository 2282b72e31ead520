"""`make bench`: run every benchmark, or those named (`make bench ARGS="vqgan_coding train_step"`), each in a process of its
own, and write `benchmarks/results/NAME.json`."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cm3.core.artefact import write_json

HERE = Path(__file__).parent
NOT_BENCHMARKS = {"__init__", "__main__", "measure", "chameleon_peer", "llamagen_peer", "trained_model", "decode_gallery"}


def main(names: Sequence[str] = ()) -> int:
    """Returns how many benchmarks failed; the results of the others stand."""
    failed = 0
    paths = [path for path in sorted(HERE.glob("*.py")) if path.stem not in NOT_BENCHMARKS]
    if unknown := set(names) - {path.stem for path in paths}:
        print(
            f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(path.stem for path in paths)}",
            file=sys.stderr,
        )
        return 2
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    measured = commit()  # before the results are written, which git knows too
    (HERE / "results").mkdir(exist_ok=True)
    for path in paths:
        if names and path.stem not in names:
            continue
        print(path.stem, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{path.stem}"]
        done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, cwd=HERE.parent)
        if done.returncode != 0:
            failed += 1
            print(done.stderr, file=sys.stderr)
            continue
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        if not rows:
            print("  nothing that can be run with what this machine has and this call names")
            continue
        result = {"command": f"python -m benchmarks.{path.stem}", **measured, "machine": machine, "rows": rows}
        write_json(HERE / "results" / f"{path.stem}.json", result)
        for row in rows:
            print(f"  {row['row']:<58} ×{row['ratio']:.2f}  {row['gate']}")
    return failed


def commit() -> dict[str, str]:
    """{"commit": the one the figures are of}, "-dirty" behind it where files differ from it; empty where git doesn't say."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": said.stdout.strip()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
