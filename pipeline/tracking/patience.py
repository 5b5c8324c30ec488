"""Questions to MLflow: how long a process waits for answers, and what it makes of refusals.

A process waits ten seconds in all for a server that is silent or slow, one that sends a byte now and then too. What
waits longer is broken off, and a mark says for a while that the tracker is down, so that later stages do not wait.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from fieldcast.pipeline.errors import InputError, TrackerError, UserError, redacted

Result = TypeVar("Result")

WAITED_SECONDS = 7.0  # for all answers of a process together, beyond what each may take
RECORD_SECONDS, FILE_SECONDS = 0.25, 3.0  # that the answer to a record and to a file may take
DOWN_SECONDS = 900  # a mark that is older counts no more
OUTBOX = Path("data/outbox")
NO_ACCESS = {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED"}
NO_SERVER = {"ENDPOINT_NOT_FOUND", "NOT_FOUND"}
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"}
_waited = 0.0


class RefusedError(InputError):
    """MLflow refuses what it was sent, and would again: all else may still be sent."""


class AccessError(TrackerError):
    """MLflow refuses whoever sends, or the place that is named: nothing can be sent until the user has changed that."""

    exit_code = InputError.exit_code


def tracking_uri(root: Path) -> str:
    """Return `MLFLOW_TRACKING_URI`, or the sqlite file in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def start() -> None:
    """Let the process wait as long as a new one."""
    global _waited
    _waited = 0.0


def ask(call: Callable[[], Result], seconds: float = RECORD_SECONDS) -> Result:
    """Return the result of a call to MLflow, of which an answer may take `seconds`.

    Raise `RefusedError` or `AccessError` where it refuses, `TrackerError` where it does not answer in the time that
    this process has left for waiting.
    """
    try:
        return _in_time(call, seconds) if tracking_uri(Path()).startswith("http") else call()
    except UserError:
        raise
    except Exception as error:  # the tracker may fail in any way
        raise named(error) from error


def named(error: Exception) -> UserError:
    """Return what a failure of MLflow is called: a refusal of one record, of all, or no answer."""
    code, text = str(getattr(error, "error_code", "")), first_line(error)
    if code in NO_ACCESS:
        return AccessError(
            f"MLflow refuses access ({text}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN"
        )
    if code in NO_SERVER:
        return AccessError(f"no MLflow server ({text}): correct MLFLOW_TRACKING_URI")
    if tracking_uri(Path()).partition("://")[0] not in ("http", "https", "sqlite", "postgresql", "mysql"):
        return AccessError(
            f"MLFLOW_TRACKING_URI is '{tracking_uri(Path())}' ({text}): expected a server such as http://host:5000 or "
            "a database such as sqlite:////folder/mlflow.db, MLflow keeps no runs in plain files any more"
        )
    if code in REFUSALS:
        return RefusedError(f"MLflow refuses it: {text}")
    return TrackerError(f"MLflow does not answer: {text}; correct MLFLOW_TRACKING_URI")


def first_line(error: BaseException) -> str:
    """Return the first line of an error, short enough for a log, and without a secret."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return redacted(line)[:200]


def mark_down() -> None:
    """Leave a mark for later processes that the tracker does not answer."""
    OUTBOX.mkdir(mode=0o700, parents=True, exist_ok=True)
    _mark().touch(mode=0o600)


def is_down() -> bool:
    """Return whether an earlier process found a moment ago that the tracker does not answer."""
    try:
        return time.time() - _mark().stat().st_mtime < DOWN_SECONDS
    except FileNotFoundError:
        return False


def forget_mark() -> None:
    """Ask the tracker again."""
    _mark().unlink(missing_ok=True)


def _mark() -> Path:
    return OUTBOX / f"down-{hashlib.sha256(tracking_uri(Path()).encode()).hexdigest()[:16]}"


def _in_time(call: Callable[[], Result], seconds: float) -> Result:
    """Return `call()` from a thread that is left behind when time is up, since a request cannot be broken off."""
    global _waited
    outcome = Future[Result]()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    started = time.monotonic()
    threading.Thread(target=work, name="tracker", daemon=True).start()  # no exit of the process waits for it
    try:
        return outcome.result(timeout=seconds + max(WAITED_SECONDS - _waited, 0.0))
    except TimeoutError:
        if outcome.done():  # it is the call's own
            raise
        raise TrackerError(f"MLflow does not answer: {time.monotonic() - started:.0f} s without a reply") from None
    finally:
        _waited += max(time.monotonic() - started - seconds, 0.0)
