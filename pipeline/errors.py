"""Errors that a user can meet, each with the exit code that says to schedulers and scripts what to do.

A `UserError` ends a command with one line on standard error. Anything else is a bug: a traceback and exit code 1. No
message holds a secret: `redacted` leaves passwords and keys out of all that is said, logged or recorded.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

BUG = 1
HIDDEN = "***"
OF_ADDRESS = re.compile(r"(?<=://)[^/\s@'\"<>]+@")  # user and password
OF_QUERY = re.compile(r"(://[^\s?#'\"<>]+\?)[^\s#'\"<>]+")  # tokens and signatures
SECRET_VARIABLE = re.compile(r"(PASSWORD|TOKEN|SECRET|_KEY)$")
OPEN_OPTIONS = {"anon", "endpoint_url", "protocol", "region", "region_name"}  # of storage, that are no secrets
SHORTEST = 4  # letters of a secret that is left out wherever it stands
_secrets: set[str] = set()
NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}  # no space or no permission


def keep_secret(options: Mapping[str, Any]) -> None:
    """Leave the values of storage options out of all messages from now on, those inside others too."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            keep_secret(value)
        elif isinstance(value, str) and name not in OPEN_OPTIONS and len(value) >= SHORTEST:
            _secrets.add(value)


def keep_secret_address(address: str) -> None:
    """Leave the path of an address, in which webhooks have their key, out of all messages from now on."""
    if len(path := address.partition("://")[2].partition("?")[0].partition("/")[2]) >= SHORTEST:
        _secrets.add(path)


def redacted(text: str) -> str:
    """Return `text` without passwords: of addresses and their queries, of storage options and of the environment."""
    text = OF_QUERY.sub(rf"\1{HIDDEN}", OF_ADDRESS.sub("", text))
    of_environment = {value for name, value in os.environ.items() if SECRET_VARIABLE.search(name)}
    for secret in sorted(_secrets | of_environment, key=len, reverse=True):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, HIDDEN)
    return text


def public(content: Any) -> Any:
    """Return parameters as they may be shown: every text redacted, and of storage options the names alone."""
    if isinstance(content, Mapping):
        return {
            key: dict.fromkeys(value, HIDDEN)
            if key == "storage_options" and isinstance(value, Mapping)
            else public(value)
            for key, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [public(item) for item in content]
    return redacted(content) if isinstance(content, str) else content


def _visible(text: str) -> str:
    """Return text of a file without letters that a terminal would obey."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


class UserError(Exception):
    """An error that a user can correct; the message names the file or key, the value and the fix, and no secret."""

    exit_code: ClassVar[int] = BUG

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(_visible(redacted(each)) if isinstance(each, str) else each for each in arguments))


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


def run_stage(stage: Callable[[], None]) -> None:
    """Run a stage; an error that a user can correct ends in one line on standard error and its own exit code."""
    logging.setLogRecordFactory(_discreet_record)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without ° or ≥ ends no command
    try:
        stage()
    except Exception as error:
        code = exit_code(error)
        lines = traceback.format_exc() if code == BUG else str(error) or type(error).__name__
        for line in redacted(lines).splitlines():
            sys.stderr.write(f"{line}\n" if code == BUG else f"fieldcast: {line}\n")
        sys.exit(code)


def _discreet_record(*arguments: Any, **names: Any) -> logging.LogRecord:
    """Return a log record, of whatever library, whose message holds no secret."""
    record = logging.LogRecord(*arguments, **names)
    record.msg, record.args = redacted(record.getMessage()), ()
    return record
