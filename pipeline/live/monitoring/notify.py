"""Delivery of notices by webhook and command: beside the cycles, which it neither delays nor fails."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from fieldcast.pipeline.config import Notify, Params
from fieldcast.pipeline.datasets.atomic import make_folder
from fieldcast.pipeline.errors import BusyError, DamagedError, InputError, UserError, keep_secret_address, redacted
from fieldcast.pipeline.live.archive.durable import failpoint, locked
from fieldcast.pipeline.live.archive.ledger import OPEN, State
from fieldcast.pipeline.live.clock import Clock, iso
from fieldcast.pipeline.live.monitoring import lateness
from fieldcast.pipeline.live.monitoring.notices import NOTICES, Content, Notices, notice
from fieldcast.pipeline.live.monitoring.status import Status, read_status

log = logging.getLogger(__name__)
WEBHOOK_SECONDS = 10.0  # for each answer of a socket
COMMAND_SECONDS = 30.0
LONGEST_SECONDS = 60.0  # that a process which would end waits for its notices
OF_ENVIRONMENT = "env:"

Send = Callable[[Content], None]  # raises `NotTakenError`


class NotTakenError(UserError, RuntimeError):
    """A notice that webhook or command did not take: try again later."""

    exit_code = BusyError.exit_code


def tell(params: Params, folder: Path, clock: Clock, error: Exception | None = None, *, resident: bool = False) -> None:
    """Note what has changed in the state of the schedule, and send it; `error` is what ended a look at it.

    Never raises. A process that is not `resident` waits a minute at most until all is sent, the others go on at once.
    """
    options = params.live.notify
    if not (channels := channels_of(options)):
        with suppress(OSError):
            (folder / NOTICES).unlink(missing_ok=True)
        return
    try:
        for text in _changes(params, folder, clock, error, list(channels)):
            log.warning("notice: %s", text)
        thread = threading.Thread(target=_deliver, args=(channels, folder, clock), name="notices", daemon=True)
        thread.start()
        if not resident:
            thread.join(LONGEST_SECONDS)
    except Exception as fault:  # a cycle does not end for it
        log.warning("notices: %s", redacted(f"{type(fault).__name__}: {fault}"))


def states_of(status: Status) -> dict[str, str]:
    """Return the states that the schedule is in, with the reason for each."""
    ended = [row for row in status.rows if row.state not in OPEN]
    failed = [lateness.failure(row) for row in ended[-1:] if row.state is State.FAILED]
    newest = status.newest
    reasons = {
        "failed": failed,
        "late": [line for line in status.late if line not in failed],
        "damaged": status.faults,
        "degraded": [newest.reason or newest.quality] if newest and newest.state is State.DEGRADED else [],
        "drift": status.alarms,
    }
    return {state: "; ".join(lines) for state, lines in reasons.items() if lines}


def channels_of(options: Notify) -> dict[str, Send]:
    """Return a function for each channel that is set, by name; it sends one notice or raises `NotTakenError`."""
    channels: dict[str, Send] = {}
    if options.webhook:
        channels["webhook"] = partial(_post, options.webhook)
    if options.command:
        channels["command"] = partial(_run, options.command)
    return channels


def check(options: Notify) -> None:
    """Raise `InputError` where a channel cannot work: a variable that is not set, a command that is not there."""
    if options.webhook:
        _address(options.webhook, InputError)
    if options.command and shutil.which(options.command[0]) is None:
        raise InputError(
            f"params.yaml: live.notify.command is '{options.command[0]}': no such command, expected a program on PATH "
            "or its full path"
        )


def send_test(params: Params, clock: Clock) -> dict[str, str]:
    """Send each channel a notice whose event is 'test' and return by channel why it was not taken, '' if it was.

    Raise `InputError` where none is set.
    """
    options = params.live.notify
    check(options)
    if not (channels := channels_of(options)):
        raise InputError(
            "params.yaml: live.notify is empty, expected a webhook, a command or both: see docs/scheduled.md"
        )
    at, faults = iso(clock.now()), {}
    for name, send in channels.items():
        try:
            send({"number": 0, **notice(params.track.experiment, "test", "test", at, at, "this is a test")})
            faults[name] = ""
        except NotTakenError as error:
            faults[name] = str(error)
    return faults


def _changes(params: Params, folder: Path, clock: Clock, error: Exception | None, channels: list[str]) -> list[str]:
    """Enter the states of this moment and return the texts of new notices; a damaged file of them is begun anew."""
    make_folder(folder)
    try:
        states, whole = states_of(read_status(params, folder, clock)), True
    except UserError as fault:  # of the ledger, mostly
        states, whole, error = {}, False, error or fault
    if error is not None:
        states["failed"] = redacted(str(error) or type(error).__name__)
    wanted: dict[str, str] = {state: states[state] for state in params.live.notify.states if state in states}
    for _ in range(2):
        try:
            with Notices(folder / NOTICES, "write") as notices:
                return notices.change(wanted, clock.now(), channels, params.track.experiment, whole=whole)
        except DamagedError as fault:
            log.warning("%s", fault)
            (folder / NOTICES).unlink()
    return []


def _deliver(channels: Mapping[str, Send], folder: Path, clock: Clock) -> None:
    """Send what waits, in order, channel by channel; one that does not take a notice gets the rest later."""
    try:
        with locked(folder / f"{NOTICES}.lock", 0, clock), Notices(folder / NOTICES, "write") as notices:
            for channel in notices.due(clock.now()):
                try:
                    for number, content in notices.waiting(channel):
                        channels[channel](content)
                        failpoint("notice_sent")
                        notices.taken(number, channel)
                except NotTakenError as error:
                    until = notices.put_off(channel, clock.now())
                    log.warning("notices: %s; tried again at %s", error, iso(until))
    except BusyError:
        pass  # another process sends them
    except Exception as error:
        log.warning("notices: %s", redacted(f"{type(error).__name__}: {error}"))


def _address(webhook: str, wrong: type[UserError] = NotTakenError) -> str:
    """Return the address of a webhook, that no message will show; raise `wrong` where its variable has none."""
    if not webhook.startswith(OF_ENVIRONMENT):
        return webhook
    name = webhook.removeprefix(OF_ENVIRONMENT)
    address = os.environ.get(name, "").strip()
    keep_secret_address(address)
    if not address.startswith(("http://", "https://")):
        found = "has no http or https address" if address else "is not set"
        raise wrong(f"live.notify.webhook: the environment variable {name} {found}: set it to the address")
    return address


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer, since a POST that follows one becomes a GET."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _post(webhook: str, content: Content) -> None:
    """Send a notice as JSON by HTTP POST; raise `NotTakenError`, without the address, unless the answer is 2xx."""
    try:
        body = json.dumps(content).encode()
        request = urllib.request.Request(_address(webhook), body, {"Content-Type": "application/json"})  # noqa: S310
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=WEBHOOK_SECONDS):
            return
    except NotTakenError:
        raise
    except urllib.error.HTTPError as error:
        reason = f"it answers {error.code}"
        error.close()
    except urllib.error.URLError as error:
        reason = str(error.reason)
    except Exception as error:  # may show the address
        reason = type(error).__name__
    raise NotTakenError(f"live.notify.webhook does not take a notice: {reason}") from None


def _run(command: tuple[str, ...], content: Content) -> None:
    """Give a notice to a command as JSON; raise `NotTakenError` unless it ends with 0 in time."""
    silent = subprocess.DEVNULL
    try:
        process = subprocess.Popen(  # noqa: S603  a command of params.yaml, without a shell
            command, stdin=subprocess.PIPE, stdout=silent, stderr=silent, start_new_session=True
        )
    except OSError as error:
        raise NotTakenError(f"live.notify.command cannot be started: {error.strerror}") from None
    with process:
        try:
            process.communicate(json.dumps(content).encode() + b"\n", timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            raise NotTakenError(f"live.notify.command has not ended after {COMMAND_SECONDS:g} s") from None
    if process.returncode:
        raise NotTakenError(f"live.notify.command ended with {process.returncode}")
