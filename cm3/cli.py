"""The command line: `cm3 COMMAND`. Results go to stdout, progress and errors to stderr; heavy packages load when needed.

Exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 3 too many rejected inputs, 4 damaged or mismatched artefact,
5 disk full or not writable, 6 training met a non-finite number, 7 run folder in use, 75 stopped and saved (run again),
130 interrupted. They are those of the error tree in `cm3.core.errors`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import typer

from cm3.commands import application
from cm3.core.errors import CM3Error, StorageError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: a user's mistake is one sentence, never a traceback."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # the progress that people see is ours
    try:
        code = application.app(args=arguments, prog_name="cm3", standalone_mode=False)
        if code == INTERRUPTED:  # typer turns the interruption into this
            raise KeyboardInterrupt
        return int(code or 0)
    except CM3Error as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted; what was finished stands, the same command goes on from there", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing left to say
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"no space left on the disk ({error.filename or 'while writing'}); free some", StorageError.exit_code)
        raise
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        if (message := getattr(error, "format_message", None)) is None:  # typer's own usage errors have it
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "cm3")
        return _fail(f"{message()} ({command} --help shows what there is)", getattr(error, "exit_code", 2))


def _fail(message: str, code: int) -> int:
    print(f"cm3: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    main()
