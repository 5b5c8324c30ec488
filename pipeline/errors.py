"""Errors that a user can meet, each with the exit code that says to schedulers and scripts what to do.

A `UserError` ends a command with one line on standard error. Anything else is a bug: a traceback and exit code 1.
"""

from __future__ import annotations

import errno
from typing import ClassVar

BUG = 1
NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # no space or no permission


class UserError(Exception):
    """An error that a user can correct; the message names the file or key, the value and the fix."""

    exit_code: ClassVar[int] = BUG


class InputError(UserError, ValueError):
    """Wrong input: the message names file, field, value, what was expected and the fix."""

    exit_code = 2


class CannotWriteError(UserError, OSError):
    """A disk that is full or refuses to be written: the message says what is needed."""

    exit_code = 73


class DamagedError(UserError, ValueError):
    """An artefact whose bytes are not those that were written: the message names the file and the fix."""

    exit_code = 74


class BusyError(UserError, RuntimeError):
    """Another process is at work, or has taken over: try again later."""

    exit_code = 75


class TrackerError(UserError, RuntimeError):
    """MLflow does not answer: try again later."""

    exit_code = 75


class SchemaError(ValueError):
    """An artefact that breaks its schema, by a bug of ours: the message names what, where and what was expected."""


def exit_code(error: BaseException) -> int:
    """Return the exit code that an error stands for; a plain OSError of a full or protected disk is one as well."""
    if isinstance(error, UserError):
        return error.exit_code
    return CannotWriteError.exit_code if is_full(error) else BUG


def is_full(error: BaseException) -> bool:
    """Return whether a write failed for want of space or of permission."""
    return isinstance(error, OSError) and error.errno in NOT_WRITABLE
