"""`accelerate launch -m cm3.pretrain RUN.toml [key.path=value …]`: `cm3 train` in each of any number of processes."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `cm3 train` with the arguments of this process."""
    from cm3.cli import main as command

    command(["train", *sys.argv[1:]])


if __name__ == "__main__":
    main()
