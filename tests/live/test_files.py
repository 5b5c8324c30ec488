"""Locks between real processes, names that change in one step, and the order in which the disk gets to know."""

import errno
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fieldcast.pipeline.live.archive import durable as files
from fieldcast.pipeline.live.archive.durable import BusyError, CannotWriteError, locked
from fieldcast.pipeline.live.clock import SystemClock
from tests.live.clocks import SimulatedClock
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


def test_a_lock_file_that_was_replaced_binds_nobody(tmp_path: Path) -> None:
    """Who waits for a lock gets that of the file that lies there, not of one that somebody has removed."""
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


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest.json"
    files.replace_durable(path, b"old")
    seen = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append((path.read_bytes(), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    files.replace_durable(path, b"new")
    assert seen == [(b"old", b"new")]
    assert path.read_bytes() == b"new"
    assert [it.name for it in tmp_path.iterdir()] == ["latest.json"]


def test_rename_takes_no_name_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()  # empty: the system's own rename would replace it
    with pytest.raises(FileExistsError, match="b"):
        files.rename(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").rmdir()
    files.rename(tmp_path / "a", tmp_path / "b")
    assert [it.name for it in tmp_path.iterdir()] == ["b"]


def test_every_new_folder_is_entered_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "fsync_folder", synced.append)
    files.make_folder(tmp_path / "a/b/c")
    files.make_folder(tmp_path / "a/b/c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a/b"]


def test_a_tree_is_synced_from_the_inside_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/b/one", "a/two", "three"):
        (tmp_path / name).write_text(name)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(str(Path(f"/proc/self/fd/{number}").readlink())))
    files.fsync_tree(tmp_path)
    assert sorted(synced) == sorted(str(path) for path in (tmp_path, *tmp_path.rglob("*")))
    for path in synced:
        if Path(path).is_dir():
            assert all(synced.index(str(inner)) < synced.index(path) for inner in Path(path).rglob("*"))


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


def test_a_full_disk_says_how_much_to_free(tmp_path: Path) -> None:
    full = pytest.raises(CannotWriteError, match=r"bytes and \d+ inodes free\): free 3 MB there")
    with full, files.needing(2_000_001, tmp_path / "store"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="Input/output") as caught, files.needing(1, tmp_path / "store"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(caught.value, CannotWriteError)
