"""Locks between real processes, and failpoints that fail as asked."""

import errno
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fieldcast.pipeline.errors import BusyError
from fieldcast.pipeline.live.archive import durable as files
from fieldcast.pipeline.live.archive.durable import locked
from fieldcast.pipeline.live.clock import SimulatedClock, SystemClock
from tests.live.publishing import ended, processes, start


def clock() -> SimulatedClock:
    return SimulatedClock(datetime(2020, 10, 31, tzinfo=UTC))


def keep(path: Path, connection: object) -> None:
    """Hold the lock until killed."""
    with locked(path, 10, SystemClock()):
        connection.send(os.getpid())  # type: ignore[attr-defined]
        time.sleep(60)


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    here, there = processes.Pipe()
    holder = start(keep, lock, there)
    number = here.recv()
    watch = clock()
    with pytest.raises(BusyError, match=rf"lock: held by process {number}: wait for it to end"), locked(lock, 2, watch):
        pass
    assert 2 <= watch.monotonic() < 2.1
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    assert ended(holder) == -signal.SIGKILL
    with locked(lock, 1, clock()):
        assert lock.read_text().strip() == str(os.getpid())


def test_a_lock_is_free_after_its_holder(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "lock", 0, clock()), pytest.raises(BusyError):  # noqa: SIM117
            with locked(tmp_path / "lock", 0, clock()):
                pass
        with pytest.raises(RuntimeError, match="body"), locked(tmp_path / "lock", 0, clock()):
            raise RuntimeError("body")


def test_a_program_that_the_holder_started_does_not_keep_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", 0, clock()):
        program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    try:
        with locked(tmp_path / "lock", 5, SystemClock()):  # the kernel lets go while it starts the program
            assert program.poll() is None
    finally:
        program.kill()
        program.wait()


def test_a_lock_file_that_was_replaced_locks_nothing(tmp_path: Path) -> None:
    """A process that waits gets the lock of the file in that place, not of one that was removed."""
    lock = tmp_path / "lock"

    class Meddler(SimulatedClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.monotonic() > 0.2 and lock.exists() and not (tmp_path / "moved").exists():
                lock.rename(tmp_path / "moved")

    with locked(lock, 0, clock()), locked(lock, 5, Meddler(datetime(2020, 10, 31, tzinfo=UTC))):
        assert lock.stat().st_ino != (tmp_path / "moved").stat().st_ino
        with pytest.raises(BusyError), locked(lock, 0, clock()):
            pass


def test_a_lock_that_was_replaced_between_opening_and_locking_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "lock"
    flock, moved = files.fcntl.flock, []

    def replaced_once(descriptor: int, operation: int) -> None:
        if not moved:
            moved.append(lock.rename(tmp_path / "moved"))
        flock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", replaced_once)
    with locked(lock, 0, clock()):
        assert lock.read_text().strip() == str(os.getpid())
        with pytest.raises(BusyError), locked(lock, 0, clock()):
            pass


@pytest.mark.parametrize(
    ("action", "error"), [("enospc", errno.ENOSPC), ("eio", errno.EIO), ("raise", None)], ids=["enospc", "eio", "raise"]
)
def test_failpoints_fail_as_asked(action: str, error: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    files.failpoint("here")
    monkeypatch.setenv(files.FAILPOINT, f"here:{action}")
    files.failpoint("elsewhere")
    with pytest.raises(OSError if error else RuntimeError) as caught:
        files.failpoint("here")
    if error:
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == error
