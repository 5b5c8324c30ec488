"""The index of live frames: which frames are in the store, and which files of the feed have been looked at.

SQLite has no checksum of its own: each row carries one. Damaged rows are removed before each look at the feed, which
costs a second look at the files that they stand for.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fieldcast.pipeline.errors import BusyError, CannotWriteError, DamagedError, InputError
from fieldcast.pipeline.live.clock import iso, parse

VERSION = 1
BUSY_SECONDS = 5.0
TABLES = """
CREATE TABLE IF NOT EXISTS frames (time TEXT PRIMARY KEY, path TEXT, bytes INTEGER, sha256 TEXT, content TEXT,
  origin TEXT, arrived_at TEXT, statistics TEXT, digest TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, state TEXT,
  detail TEXT, tries INTEGER, times TEXT, dropped TEXT, validators TEXT, digest TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT, digest TEXT) STRICT, WITHOUT ROWID;
"""
FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}

Statistics = dict[str, dict[str, float | None]]
State = tuple[int, int, int]  # of a file: bytes, mtime and ctime in nanoseconds
NO_STATE: State = (0, 0, 0)


@dataclass(frozen=True)
class Frame:
    """A frame of the store."""

    time: datetime
    path: Path
    sha256: str  # of the file
    origin: str  # the file, address or event that it came from
    arrived_at: datetime
    statistics: Statistics  # by variable: valid_share, min, max, mean; the last three None without a valid cell
    content: str  # SHA-256 of the values alone: equal frames have equal ones whatever their time
    bytes: int


@dataclass(frozen=True)
class Seen:
    """A file of the feed as it was at the last look."""

    key: str  # its path, or its address without secrets
    state: State
    verdict: Literal["known", "waiting", "refused"]
    detail: str = ""  # why it waits or is refused
    tries: int = 0  # how often it was found unreadable in this state
    times: tuple[datetime, ...] = ()  # of its frames
    dropped: frozenset[datetime] = frozenset()  # those that will not be taken from it
    validators: Mapping[str, str] = field(default_factory=dict)  # by which a server knows that it is unchanged


class FrameIndex:
    """An open index; every change is one durable transaction."""

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self._connection, self._folder = connection, folder

    def frame(self, time: datetime) -> Frame | None:
        """Return the frame of a time, None where there is none; raise `DamagedError` where its row is damaged."""
        row = self._connection.execute("SELECT * FROM frames WHERE time = ?", (iso(time),)).fetchone()
        return None if row is None else self._frame(row)

    def frames(self, since: datetime, until: datetime) -> list[Frame]:
        """Return the frames from `since` to `until`, both included, in order of time."""
        query = "SELECT * FROM frames WHERE time BETWEEN ? AND ? ORDER BY time"
        return [self._frame(row) for row in self._connection.execute(query, (iso(since), iso(until)))]

    def latest(self) -> Frame | None:
        """Return the frame of the latest time, None where there is none."""
        row = self._connection.execute("SELECT * FROM frames ORDER BY time DESC LIMIT 1").fetchone()
        return None if row is None else self._frame(row)

    def add(self, frame: Frame, write: Callable[[], None]) -> bool:
        """Enter a frame once `write` has put its file there; return False where another has come in before."""
        with self.changing():
            if self.frame(frame.time):
                return False
            write()
            values = (
                *(iso(frame.time), frame.path.name, frame.bytes, frame.sha256, frame.content, frame.origin),
                *(iso(frame.arrived_at), json.dumps(frame.statistics, sort_keys=True)),
            )
            self._connection.execute(f"INSERT INTO frames VALUES ({_marks(9)})", (*values, _digest(values)))
        return True

    def repair(self, is_whole: Callable[[Path, str], bool]) -> int:
        """Remove damaged rows, and those of frames whose file and SHA-256 are not `is_whole`; return how many frames.

        A table with a damaged key cannot be searched: what is left is written anew.
        """

        def sound(table: str) -> tuple[list[Any], int]:
            rows = self._connection.execute(f"SELECT * FROM {table}").fetchall()
            kept = [row for row in rows if _digest(row[:-1]) == row[-1]]
            if table == "frames":
                kept = [row for row in kept if is_whole(self._folder / "frames" / row[1], row[3])]
            return kept, len(rows) - len(kept)

        gone = 0
        for table in ("frames", "files"):
            if sound(table)[1]:
                with self.changing():
                    rows, lost = sound(table)  # again, now that nobody else can add one
                    self._connection.execute(f"DELETE FROM {table}")
                    if rows:
                        self._connection.executemany(f"INSERT INTO {table} VALUES ({_marks(len(rows[0]))})", rows)
                gone += lost if table == "frames" else 0
        return gone

    def drop_before(self, moment: datetime) -> int:
        """Remove the rows of frames older than `moment`; return how many."""
        with self.changing():
            return self._connection.execute("DELETE FROM frames WHERE time < ?", (iso(moment),)).rowcount

    def file_names(self) -> set[str]:
        """Return the names of the files that the rows stand for."""
        return {str(name) for (name,) in self._connection.execute("SELECT path FROM frames")}

    def seen(self) -> dict[str, Seen]:
        """Return what is known of the feed's files, by key."""
        rows = self._connection.execute("SELECT * FROM files").fetchall()
        return {row[0]: _seen(row) for row in rows if _digest(row[:-1]) == row[-1]}

    def note(self, files: Sequence[Seen]) -> None:
        """Remember these files in the place of what was known of them."""
        if files:
            with self.changing():
                query = f"INSERT OR REPLACE INTO files VALUES ({_marks(11)})"
                self._connection.executemany(query, [(*values, _digest(values)) for values in map(_row, files)])

    def forget(self, keys: Sequence[str]) -> None:
        """Remove what is known of these files."""
        if keys:
            with self.changing():
                self._connection.executemany("DELETE FROM files WHERE path = ?", [(key,) for key in keys])

    def forget_unless(self, key: str, value: str) -> None:
        """Forget all files unless the note `key` is `value`, which it is then."""
        if self.about(key) != value:
            with self.changing():
                self._connection.execute("DELETE FROM files")
            self.set_about(key, value)

    def about(self, key: str) -> str | None:
        """Return a note on the store as a whole, None where there is none or it is damaged."""
        row = self._connection.execute("SELECT * FROM about WHERE key = ?", (key,)).fetchone()
        return None if row is None or _digest(row[:-1]) != row[-1] else str(row[1])

    def set_about(self, key: str, value: str) -> None:
        """Write a note on the store as a whole."""
        with self.changing():
            row = (key, value, _digest((key, value)))
            self._connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?, ?)", row)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the index for one transaction, which an error takes back."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.rollback()
            raise
        self._connection.commit()

    def require_whole(self) -> None:
        """Raise `DamagedError` where SQLite finds the index inconsistent."""
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)

    def _frame(self, row: tuple[Any, ...]) -> Frame:
        time, name, size, sha256, content, origin, arrived_at, statistics, digest = row
        if _digest(row[:-1]) != digest:
            raise DamagedError(
                f"{self._folder / 'index.sqlite'}: the row of {time} has the digest {_digest(row[:-1])}, expected "
                f"{digest}: the next cycle brings the frame in again if it is still in the feed"
            )
        path = self._folder / "frames" / name
        return Frame(
            parse(time), path, sha256, origin, parse(arrived_at), json.loads(statistics), content=content, bytes=size
        )


@contextmanager
def opened(folder: Path, create: bool = False) -> Iterator[FrameIndex]:
    """Yield the index in `folder`; where there is none, an empty one in memory unless it is to be created.

    Raise `DamagedError` for a broken one, `BusyError` for one that others hold, `CannotWriteError` for a full disk.
    """
    path = folder / "index.sqlite"
    with _translated(path), closing(_connect(path if create or path.is_file() else None)) as connection:
        _prepare(connection, path)
        yield FrameIndex(connection, folder)


@contextmanager
def copied(folder: Path) -> Iterator[FrameIndex]:
    """Yield a copy in memory of the index in `folder`, whose changes nobody sees."""
    path = folder / "index.sqlite"
    with _translated(path), closing(_connect(None)) as connection:
        if path.is_file():
            with closing(_connect(path)) as stored:
                stored.backup(connection)
        _prepare(connection, path)
        yield FrameIndex(connection, folder)


def _connect(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:" if path is None else path, timeout=BUSY_SECONDS, isolation_level=None)
    connection.text_factory = lambda text: text.decode(errors="replace")  # damage is found by the digests
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise InputError(f"{path}: format {version}, expected {VERSION} at most: use the version that wrote it")
    connection.execute("PRAGMA synchronous = EXTRA")
    if version < VERSION:
        connection.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into those that commands know."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter for messages with damaged names
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in BUSY:
            raise BusyError(f"{path}: another process holds it ({error}): try again") from error
        if code in FULL:
            raise CannotWriteError(f"{path}: cannot be written ({error}): make room or mend the permissions") from error
        raise DamagedError(
            f"{path}: damaged ({error}): delete it; the next cycle brings in again what is still in the feed"
        ) from error


def _row(file: Seen) -> tuple[Any, ...]:
    times, dropped = (" ".join(iso(time) for time in sorted(times)) for times in (file.times, file.dropped))
    validators = json.dumps(dict(file.validators), sort_keys=True)
    return file.key, *file.state, file.verdict, file.detail, file.tries, times, dropped, validators


def _seen(row: tuple[Any, ...]) -> Seen:
    key, size, mtime_ns, ctime_ns, verdict, detail, tries, times, dropped, validators, _ = row
    return Seen(
        key,
        (size, mtime_ns, ctime_ns),
        verdict,
        detail,
        tries,
        tuple(datetime.fromisoformat(time) for time in times.split()),
        frozenset(datetime.fromisoformat(time) for time in dropped.split()),
        json.loads(validators),
    )


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256("\x1f".join(str(value) for value in values).encode()).hexdigest()


def _marks(count: int) -> str:
    return ", ".join("?" * count)
