"""`accelerate launch -m cm3.pretrain RUN.toml [key.path=value …]`: pretraining on any number of processes."""

from __future__ import annotations

import sys
from pathlib import Path

from cm3.core.errors import CM3Error, UsageError
from cm3.core.runfile import load_run


def main(arguments: list[str]) -> int:
    """Run the pretraining described by `arguments`; returns the exit code."""
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            raise UsageError("usage: accelerate launch -m cm3.pretrain RUN.toml [key.path=value …]")
        from cm3.pretrain.run import PretrainConfig, pretrain

        pretrain(load_run(PretrainConfig, Path(arguments[0]), arguments[1:]))
    except CM3Error as error:
        print(f"cm3.pretrain: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
