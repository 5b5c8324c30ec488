"""The index of live frames: the frames of the store, and the feed's candidates as earlier polls left them.

Damaged rows are removed before each poll, which costs another look at the files that they describe.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from fieldcast.pipeline.live.archive.database import Database, Row, is_whole
from fieldcast.pipeline.live.clock import iso, parse
from fieldcast.pipeline.sources.files import file_sha256

TABLES = ("frames", "files", "facts")

Statistics = dict[str, dict[str, float | None]]
Version = tuple[int, int, int]  # of a file: bytes, mtime and ctime in nanoseconds
NO_VERSION: Version = (0, 0, 0)
Aside = tuple[int, str]  # bytes of a file that could not be read, and the reason
ASIDE = "set_aside"  # the fact that holds them by SHA-256
KEPT_ASIDE = 100


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
class Candidate:
    """A file or Zarr store of the feed, and what is known of its frames."""

    key: str  # its path, or its address without secrets
    version: Version  # of the file; `NO_VERSION` for a Zarr store and a simulated event
    state: Literal["unread", "known", "waiting", "refused"] = "unread"
    detail: str = ""  # reason why it waits or is refused
    tries: int = 0  # number of polls that found it unreadable in this version
    times: tuple[datetime, ...] = ()  # of its frames
    dropped: frozenset[datetime] = frozenset()  # times that are never taken from it
    validators: Mapping[str, str] = field(default_factory=dict)  # by which a server knows that it is unchanged
    path: str = field(default="", compare=False)  # to be opened, a download's own; this and the rest are not stored
    expected: datetime | None = field(default=None, compare=False)  # the time that its address was made for
    previous: Candidate | None = field(default=None, compare=False, repr=False)  # as the last poll left it

    def is_unchanged(self) -> bool:
        """Return whether the file is the one of the last poll."""
        return self.previous is not None and self.previous.version[:2] == self.version[:2]


class FrameIndex(Database):
    """An open index of the frames in `folder`; every change is one durable transaction."""

    SCHEMA = """
CREATE TABLE frames (time TEXT PRIMARY KEY, path TEXT, bytes INTEGER, sha256 TEXT, content TEXT,
  origin TEXT, arrived_at TEXT, statistics TEXT, digest TEXT) STRICT, WITHOUT ROWID;
CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, state TEXT,
  detail TEXT, tries INTEGER, times TEXT, dropped TEXT, validators TEXT, digest TEXT) STRICT, WITHOUT ROWID;
"""
    VERSION = 2
    REPAIR = "delete the file; the next cycle fetches again what is still in the feed"

    def __init__(self, folder: Path, *, create: bool = False, copy: bool = False) -> None:
        """Open the index; where there is none, an empty one in memory unless `create`; `copy`: discard all changes."""
        path = folder / "index.sqlite"
        super().__init__(path, "copy" if copy or not (create or path.is_file()) else "write")
        self._db.text_factory = lambda text: text.decode(errors="replace")  # damage is found by the SHA-256
        self._frames_folder = folder / "frames"

    def frame(self, time: datetime) -> Frame | None:
        """Return the frame of a time, None where there is none; raise `DamagedError` where its row is damaged."""
        return next(iter(self.frames(time, time)), None)

    def frames(self, since: datetime, until: datetime) -> list[Frame]:
        """Return the frames from `since` to `until`, both included, in order of time."""
        query = "SELECT * FROM frames WHERE time BETWEEN ? AND ? ORDER BY time"
        return [self._frame(row) for row in self.rows(query, (iso(since), iso(until)))]

    def latest(self) -> Frame | None:
        """Return the frame of the latest time, None where there is none."""
        rows = self.rows("SELECT * FROM frames ORDER BY time DESC LIMIT 1")
        return self._frame(rows[0]) if rows else None

    def add(self, frame: Frame, write: Callable[[], None]) -> bool:
        """Enter a frame once `write` has written its file; return False where its time has one already."""
        with self.transaction():
            if self.frame(frame.time):
                return False
            write()
            file = (frame.path.name, frame.bytes, frame.sha256, frame.content, frame.origin, iso(frame.arrived_at))
            self.put_row("frames", (iso(frame.time), *file, json.dumps(frame.statistics, sort_keys=True)))
        return True

    def repair(self, is_sound: Callable[[Path, str], bool]) -> int:
        """Remove damaged rows, and those of frames whose file and SHA-256 are not sound; return how many frames.

        A table with a damaged key cannot be searched: its sound rows are written anew.
        """

        def sound_rows(table: str) -> tuple[list[Row], int]:
            rows = self.rows(f"SELECT * FROM {table}")
            sound = [row for row in rows if is_whole(row)]
            if table == "frames":
                sound = [row for row in sound if is_sound(self._frames_folder / row[1], row[3])]
            return sound, len(rows) - len(sound)

        removed = 0
        for table in TABLES:
            if sound_rows(table)[1]:
                with self.transaction():
                    rows, lost = sound_rows(table)  # again, now that no other process can add one
                    self._db.execute(f"DELETE FROM {table}")
                    for row in rows:
                        self.put_row(table, row[:-1])
                removed += lost if table == "frames" else 0
        return removed

    def drop_before(self, moment: datetime) -> int:
        """Remove the rows of frames older than `moment`; return how many."""
        with self.transaction():
            return self._db.execute("DELETE FROM frames WHERE time < ?", (iso(moment),)).rowcount

    def file_names(self) -> set[str]:
        """Return the names of the files that the rows describe."""
        return {str(name) for (name,) in self.rows("SELECT path FROM frames")}

    def candidates(self) -> dict[str, Candidate]:
        """Return the feed's candidates as the last poll left them, by key."""
        return {row[0]: _candidate(row) for row in self.rows("SELECT * FROM files") if is_whole(row)}

    def remember(self, candidates: Iterable[Candidate]) -> None:
        """Store these candidates where they have changed."""
        if changed := [candidate for candidate in candidates if candidate != candidate.previous]:
            with self.transaction():
                for candidate in changed:
                    self.put_row("files", _columns(candidate))

    def forget(self, keys: Sequence[str]) -> None:
        """Remove these candidates."""
        if keys:
            with self.transaction():
                self._db.executemany("DELETE FROM files WHERE path = ?", [(key,) for key in keys])

    def forget_unless(self, name: str, value: str) -> None:
        """Forget all candidates unless the fact `name` has this value, and set it."""
        if self.fact(name) != value:
            with self.transaction():
                self._db.execute("DELETE FROM files")
                self.set_fact(ASIDE, "{}")
                self.set_fact(name, value)

    def aside(self) -> dict[str, Aside]:
        """Return the files that were set aside, by the SHA-256 of their bytes."""
        fact = self.fact(ASIDE)
        return {sha256: (size, reason) for sha256, (size, reason) in json.loads(fact).items()} if fact else {}

    def set_aside(self, candidates: Sequence[Candidate], frames: Mapping[str, str]) -> None:
        """Remember the bytes of these candidates, by which they are known again under any name.

        `frames` are reasons by the SHA-256 of the values of frames of a Zarr store, which is no file of its own.
        """
        known = self.aside() | {content: (0, reason) for content, reason in frames.items()}
        for candidate in candidates:
            try:
                known[file_sha256(Path(candidate.path))] = (candidate.version[0], candidate.detail)
            except OSError:  # it has just gone
                continue
        if candidates or frames:
            with self.transaction():
                self.set_fact(ASIDE, json.dumps(dict(list(known.items())[-KEPT_ASIDE:])))

    def _upgrade(self, version: int) -> None:
        if version == 0:
            super()._upgrade(version)
            return
        self._db.execute("ALTER TABLE about RENAME TO facts")
        self._db.execute("ALTER TABLE facts RENAME COLUMN key TO name")
        for table in TABLES:  # version 1 had another SHA-256
            for row in self.rows(f"SELECT * FROM {table}"):
                if hashlib.sha256("\x1f".join(map(str, row[:-1])).encode()).hexdigest() == row[-1]:
                    self.put_row(table, row[:-1])

    def _frame(self, row: Row) -> Frame:
        time, name, size, sha256, content, origin, arrived_at, statistics = self.checked(row, f"frame {row[0]}")
        path = self._frames_folder / name
        return Frame(parse(time), path, sha256, origin, parse(arrived_at), json.loads(statistics), content, size)


def _columns(candidate: Candidate) -> tuple[Any, ...]:
    times, dropped = (" ".join(map(iso, sorted(times))) for times in (candidate.times, candidate.dropped))
    validators = json.dumps(dict(candidate.validators), sort_keys=True)
    reason = (candidate.state, candidate.detail, candidate.tries)
    return candidate.key, *candidate.version, *reason, times, dropped, validators


def _candidate(row: Row) -> Candidate:
    key, size, mtime_ns, ctime_ns, state, detail, tries, *texts, validators, _ = row
    times, dropped = ([datetime.fromisoformat(time) for time in text.split()] for text in texts)
    version = (size, mtime_ns, ctime_ns)
    return Candidate(key, version, state, detail, tries, tuple(times), frozenset(dropped), json.loads(validators))
