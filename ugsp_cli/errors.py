"""What can go wrong in a way that the user can do something about, and the exit code of each.

Every error that is meant to reach the user is a `UgspError`: one line that says what failed and one that says what to
try. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["DecodeError", "EncodeError", "ExitCode", "InputError", "OutputError", "UgspError", "UsageError"]


class ExitCode(IntEnum):
    """The exit codes of every command."""

    OK = 0
    FAILED = 1
    USAGE = 2
    INTERRUPTED = 130


class UgspError(Exception):
    """Base of the errors that are shown without a traceback.

    `str(error)` is one line that says what failed; `hint` is a second line that says what to try, or empty.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(UgspError):
    """The request itself cannot be served (an unknown encoder, contradicting options); found before any work."""

    exit_code = ExitCode.USAGE


class InputError(UgspError):
    """The input is missing, unreadable, or holds no video."""

    exit_code = ExitCode.USAGE


class OutputError(UgspError):
    """The output may not or cannot be written where it was asked for; found before any work."""

    exit_code = ExitCode.USAGE


class DecodeError(UgspError):
    """The input gave out while it was being read."""


class EncodeError(UgspError):
    """Encoding or writing the output failed while running (a full disk, an encoder that gave up)."""
