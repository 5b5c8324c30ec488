"""Locks between processes, and the points where tests break in."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fieldcast.pipeline.errors import BusyError
from fieldcast.pipeline.live.clock import Clock

FAILPOINT = "FIELDCAST_FAILPOINT"  # 'name:kill', 'name:enospc', 'name:eio' or 'name:raise': what happens there
POLL_SECONDS = 0.05


def failpoint(name: str) -> None:
    """Do what the environment asks for at this point: be killed, or fail as a disk does. Nothing in normal use."""
    wanted, _, action = os.environ.get(FAILPOINT, "").partition(":")
    if wanted != name:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action in ("enospc", "eio"):
        number = errno.ENOSPC if action == "enospc" else errno.EIO
        raise OSError(number, os.strerror(number), name)
    raise RuntimeError(f"failpoint {name}")


@contextmanager
def locked(path: Path, wait_seconds: float, clock: Clock) -> Iterator[None]:
    """Hold the lock file `path`; raise `BusyError` naming the holder when others keep it longer than `wait_seconds`.

    The kernel frees it when the process ends, however it ends. A process started by fork would keep it: none may be.
    """
    end = clock.monotonic() + wait_seconds
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if clock.monotonic() >= end:
                raise BusyError(f"{path}: held by process {holder or 'unknown'}: wait for it to end") from None
            clock.sleep(POLL_SECONDS)
            continue
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # another process replaced the file: a lock on it excludes no one
    try:
        with suppress(OSError):  # a full disk must not keep anyone from making room
            os.pwrite(descriptor, f"{os.getpid():<20d}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
