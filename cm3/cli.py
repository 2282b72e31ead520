"""The command line: `cm3 COMMAND`. Results go to stdout, progress and errors to stderr; heavy packages load when needed.

Exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 3 too many rejected inputs, 4 damaged or mismatched artefact,
5 disk full or not writable, 6 training met a non-finite number, 7 run folder in use, 8 loss spikes in a row, 75 stopped and saved
(run again), 130 interrupted. They are those of the error tree in `cm3.core.errors`.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import typer

from cm3.commands import application
from cm3.core.errors import CM3Error, InputError, Preempted, StorageError

INTERRUPTED = 130
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_WRONG_PATH = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM})
_LONGEST = 300  # of what others say, or of a text that was given in place of a path


class _Terminated(BaseException):
    """SIGTERM came outside of a training run. No Exception, so that nobody takes it for a failure of his own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: a user's mistake is one sentence, never a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter must not cost the result
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
    except _Terminated:
        return _fail("stopped as asked; what was finished stands, the same command goes on from there", Preempted.exit_code)
    except OSError as error:
        return _fail(*_of_the_system(error))
    except typer.Exit as stop:
        return stop.exit_code
    except Exception as error:
        return _other(error, arguments)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _of_the_system(error: OSError) -> tuple[str, int]:
    """What to say about an error of the operating system that no part has named better, and the exit code."""
    place = f"{str(error.filename)[:_LONGEST]}: " if error.filename else ""
    if error.errno in _FULL:
        return f"{place or 'while writing: '}no space left; free some, or write elsewhere", StorageError.exit_code
    if error.errno == errno.EROFS:
        return f"{place}the place is read-only; choose another place", StorageError.exit_code
    if error.errno in _WRONG_PATH:
        return f"{place}{error.strerror}; check the path", InputError.exit_code
    return f"{place}{error.strerror or _first_line(error)}", CM3Error.exit_code


def _other(error: Exception, arguments: list[str]) -> int:
    """The exit code of what is neither ours nor the system's; what nobody expected is raised again, with its traceback."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return _fail(f"the memory is not enough ({_first_line(error)}); ask for less at once", CM3Error.exit_code)
    if (message := getattr(error, "format_message", None)) is None:  # typer's own usage errors have it
        raise error
    if type(error).__name__ == "NoArgsIsHelpError":
        print(message(), file=sys.stderr, flush=True)
    else:
        command = getattr(getattr(error, "ctx", None), "command_path", "cm3")
        text = message().replace("Input should be", "expected") + _given(getattr(error, "param", None), arguments)
        _fail(f"{text} ({command} --help shows what there is)", 2)
    return int(getattr(error, "exit_code", 2))


def _given(option: Any, arguments: list[str]) -> str:
    """What was given for `option` on the command line, as the end of a sentence."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in getattr(option, "opts", ()) and (equals or place + 1 < len(arguments)):
            return f", got {(value if equals else arguments[place + 1])[:_LONGEST]!r}"
    return ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_LONGEST]


def _fail(message: str, code: int) -> int:
    print(f"cm3: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    main()
