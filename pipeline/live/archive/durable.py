"""Every durable change on disk, in one place: written, synced, renamed, locked; and the points where tests break in."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fieldcast.pipeline.live.clock import Clock

FAILPOINT = "FIELDCAST_FAILPOINT"  # 'name:kill', 'name:enospc', 'name:eio' or 'name:raise': what happens there
POLL_SECONDS = 0.05


class CannotWriteError(OSError):
    """A disk that is full or refuses: the message says what is needed. Exit code 73."""


class DamagedError(ValueError):
    """An artefact whose bytes are not those that were written: the message names the file and the fix. Exit code 74."""


class BusyError(RuntimeError):
    """Somebody else is at work, or has taken over: try again later. Exit code 75."""


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


def write_durable(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it; its folder's entry needs `fsync_folder`."""
    with needing(len(content), path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durable(path: Path, content: bytes) -> None:
    """Put `content` in the place of `path` in one step; readers see the old or the new, also after power loss."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write_durable(partial, content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Wait until the disk has every file below `folder`, then every folder from the inside out."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(Path(place) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        fsync_folder(Path(place))


def make_folder(folder: Path) -> None:
    """Make a folder and wait until the disk has it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def rename(source: Path, target: Path) -> None:
    """Give `source` its final name, which must be free, and wait until the disk has it."""
    if target.exists():
        raise FileExistsError(errno.EEXIST, "exists already", str(target))
    source.rename(target)
    fsync_folder(target.parent)


def free_bytes(folder: Path) -> int:
    """Return what an ordinary user may still write to the file system of `folder`."""
    return shutil.disk_usage(folder).free


@contextmanager
def needing(wanted: int, place: Path) -> Iterator[None]:
    """Turn the error of a full disk into a `CannotWriteError` that says how much to free for `wanted` bytes."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        inodes = os.statvfs(place.parent).f_favail
        raise CannotWriteError(
            f"{place}: {error.strerror} ({free_bytes(place.parent)} bytes and {inodes} inodes free): free "
            f"{-(-wanted // 10**6)} MB there or lower live.retention.days"
        ) from error


def is_full(error: OSError) -> bool:
    """Return whether a write failed for want of space or of permission."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


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
        os.close(descriptor)  # somebody replaced the file: that lock binds nobody
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
