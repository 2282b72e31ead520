"""The error tree: everything a user can cause or meet is a `CM3Error` with one clear sentence.

    CM3Error               1   something failed that no narrower class names
    ├── UsageError         2   a wrong command, flag, or configuration key or value
    ├── InputError         2   a file, picture or text that cannot be used
    ├── BudgetError        3   more inputs were rejected than the failure budget allows
    ├── ArtefactError      4   an artefact folder is damaged, incomplete, or its parts do not belong together
    ├── StorageError       5   the disk is full or the place is not writable
    ├── NonFiniteError     6   training met a NaN or an infinity; the update was not made
    ├── RunLockedError     7   another process works in the same run folder
    ├── LossSpikeError     8   training met one loss spike after the other; the last updates were not made
    └── Preempted         75   asked to stop (SIGTERM); the state is saved, run the same command again

The number is the exit code of the command line. A message says what was met, what was expected and what to do.
The command line prints it as one line without a traceback; the server turns it into a typed JSON error.
"""

from __future__ import annotations


class CM3Error(Exception):
    """Root of the tree; `exit_code` is what the command line exits with."""

    exit_code: int = 1


class UsageError(CM3Error):
    """A wrong command, flag, or configuration key or value."""

    exit_code = 2


class InputError(CM3Error):
    """A file, picture or text given by the user cannot be used."""

    exit_code = 2


class BudgetError(CM3Error):
    """More inputs were rejected than the failure budget allows."""

    exit_code = 3


class ArtefactError(CM3Error):
    """An artefact folder is damaged, incomplete, or made of parts that do not belong together."""

    exit_code = 4


class StorageError(CM3Error):
    """The disk is full, or the target cannot be written."""

    exit_code = 5


class NonFiniteError(CM3Error):
    """A loss, gradient or weight is NaN or infinite; the update was not made."""

    exit_code = 6


class RunLockedError(CM3Error):
    """Another process holds the run folder."""

    exit_code = 7


class LossSpikeError(CM3Error):
    """Loss spikes came one after the other; their updates were not made."""

    exit_code = 8


class Preempted(CM3Error):
    """The process was asked to stop; the state is saved and the same command continues from it."""

    exit_code = 75
