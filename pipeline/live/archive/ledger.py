"""The ledger: what became of every cycle, in one sqlite file that survives kills, power loss and two schedulers.

Every row carries the SHA-256 of its columns, and an event's covers the event before it, since sqlite's pages have no
checksum. Writers hold a token, the newest of which alone may write: a process that was frozen and wakes up is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from fieldcast.pipeline.errors import BusyError, DamagedError, InputError
from fieldcast.pipeline.live.archive import database
from fieldcast.pipeline.live.archive.database import REBUILD, digest
from fieldcast.pipeline.live.clock import iso, parse

VERSION = 1
KEPT_SENT = timedelta(days=31)  # records that the tracker has


class State(StrEnum):
    """Where a cycle stands."""

    DUE = "due"
    RUNNING = "running"
    PUBLISHED = "published"
    DEGRADED = "degraded"  # published, from an incomplete history or by a fallback
    SKIPPED = "skipped"
    FAILED = "failed"
    SUPERSEDED = "superseded"  # a later revision is the one that readers see
    RETIRED = "retired"  # too old: taken out of the catalogue


OPEN = (State.DUE, State.RUNNING)
VISIBLE = (State.PUBLISHED, State.DEGRADED)

SCHEMA = f"""
CREATE TABLE fence (
  id INTEGER PRIMARY KEY CHECK (id = 1), token INTEGER NOT NULL, holder TEXT NOT NULL, row_sha256 TEXT NOT NULL) STRICT;
CREATE TABLE cycles (
  init_time TEXT, revision INTEGER, state TEXT CHECK (state IN ({", ".join(f"'{state}'" for state in State)})),
  attempt INTEGER, token INTEGER, due_at TEXT, deadline_at TEXT, started_at TEXT, ended_at TEXT, retired_at TEXT,
  reason TEXT, model TEXT, model_version TEXT, quality TEXT, n_input_missing INTEGER, outside_share REAL,
  run_key TEXT, manifest_sha256 TEXT, timings TEXT, row_sha256 TEXT NOT NULL,
  PRIMARY KEY (init_time, revision)) STRICT, WITHOUT ROWID;
CREATE TABLE events (
  seq INTEGER PRIMARY KEY, at TEXT, init_time TEXT, token INTEGER, event TEXT, detail TEXT,
  row_sha256 TEXT NOT NULL) STRICT;
CREATE TABLE verifications (
  init_time TEXT, revision INTEGER, at TEXT, model TEXT, model_version TEXT, sums TEXT, row_sha256 TEXT NOT NULL,
  PRIMARY KEY (init_time, revision)) STRICT;
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY, name TEXT UNIQUE, content TEXT, sent_at TEXT, row_sha256 TEXT NOT NULL) STRICT;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT, row_sha256 TEXT NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True)
class Cycle:
    """One row: a revision of the forecast of one init time, and how it came about."""

    init_time: datetime
    revision: int = 0
    state: State = State.DUE
    attempt: int = 0
    token: int = 0
    due_at: datetime | None = None
    deadline_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    retired_at: datetime | None = None
    reason: str = ""
    model: str = ""  # that made the forecast: a fallback's own name
    model_version: str = ""  # version in the registry or digest of the checkpoint
    quality: str = ""  # good, filled, fallback_advection, fallback_persistence
    n_input_missing: int = 0
    outside_share: float = 0.0  # of valid input cells outside the range of the training data
    run_key: str = ""
    manifest_sha256: str = ""
    timings: dict[str, float] = field(default_factory=dict)  # seconds


TIMES = ("init_time", "due_at", "deadline_at", "started_at", "ended_at", "retired_at")
EVENT_COLUMNS = ("seq", "at", "init_time", "token", "event", "detail")
COLUMNS = tuple(column.name for column in fields(Cycle))


@dataclass(frozen=True)
class Verification:
    """Sums of errors of one published forecast, as `pipeline.live.monitoring.verification` lays them out."""

    init_time: datetime
    revision: int
    at: datetime
    model: str
    model_version: str
    sums: dict[str, Any]


class Ledger:
    """One connection to `ledger.sqlite`; made on first use. Times go in and come out aware, UTC."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path, self.token = path, 0
        if read_only and not path.exists():
            raise InputError(f"{path}: no such file: fieldcast cycle writes it")
        with self._errors():
            self._db = database.connect(path, read_only=read_only)
            try:
                if not read_only:
                    self._create()
                self._check_version()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take_token(self, holder: str) -> None:
        """Make this connection the one that may write; whoever could before may no longer."""
        with self.writing():
            database.check_pages(self.path, self._db, "cycles", "outbox", "facts")
            self.token = self._newest_token() + 1
            row = (1, self.token, holder)
            self._db.execute("INSERT OR REPLACE INTO fence VALUES (?, ?, ?, ?)", (*row, digest(row)))

    @contextmanager
    def writing(self, *, fenced: bool = False) -> Iterator[None]:
        """Run the body in one transaction; `fenced`: raise `BusyError` if another process has taken over."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if fenced and (newest := self._newest_token()) != self.token:
                    raise BusyError(f"{self.path}: another process has taken over (token {newest}, ours {self.token})")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def put(self, cycle: Cycle, event: str, at: datetime, detail: str = "") -> None:
        """Write a row, and the event that made it what it is; inside `writing`."""
        values = _row(cycle)
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        self._db.execute(f"INSERT OR REPLACE INTO cycles ({names}) VALUES ({marks})", list(values.values()))
        self.note(event, at, detail or cycle.reason, cycle.init_time)

    def note(self, event: str, at: datetime, detail: str = "", init_time: datetime | None = None) -> None:
        """Add an event to the chain; inside `writing`."""
        last = self._last_event()
        seq, previous = (last[0] + 1, last[-1]) if last else (1, "")
        row = (seq, iso(at), iso(init_time) if init_time else "", self.token, event, detail)
        self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, digest([*row, previous])))

    def supersede(self, revision: Cycle, at: datetime) -> None:
        """Mark the earlier revisions of an init time as no longer the one to read; inside `writing`."""
        for row in self.cycles(revision.init_time, revision.init_time, VISIBLE):
            if row.revision < revision.revision:
                self.put(replace(row, state=State.SUPERSEDED), "superseded", at, f"by revision {revision.revision}")

    def cycle(self, init_time: datetime) -> Cycle | None:
        """Return the newest revision of an init time."""
        found = self.cycles(init_time, init_time)
        return found[-1] if found else None

    def cycles(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        states: Iterable[State] | None = None,
        newest: int | None = None,
    ) -> list[Cycle]:
        """Return rows by init time and revision; the `newest` of them. Raise `DamagedError` for a row that changed."""
        wanted, values = ["1"], []
        for sign, moment in ((">=", since), ("<=", until)):
            if moment:
                wanted.append(f"init_time {sign} ?")
                values.append(iso(moment))
        if states is not None:
            chosen = [str(state) for state in states]
            wanted.append(f"state IN ({', '.join('?' * len(chosen))})")
            values += chosen
        limit = f" LIMIT {newest:d}" if newest else ""
        query = f"SELECT {', '.join(COLUMNS)}, row_sha256 FROM cycles WHERE {' AND '.join(wanted)}"
        with self._errors():
            rows = self._db.execute(query + " ORDER BY init_time DESC, revision DESC" + limit, values).fetchall()
        return [self._cycle(row) for row in reversed(rows)]

    def names(self) -> dict[tuple[str, int], State]:
        """Return the state of every row by init time (as `iso` spells it) and revision, without checking the rows."""
        with self._errors():
            rows = self._db.execute("SELECT init_time, revision, state FROM cycles").fetchall()
        try:
            return {(init_time, revision): State(state) for init_time, revision, state in rows}
        except ValueError as error:
            raise DamagedError(f"{self.path}: {error}: {REBUILD}") from error

    def newest_init_time(self) -> datetime | None:
        """Return the last init time that was planned."""
        with self._errors():
            newest = self._db.execute("SELECT max(init_time) FROM cycles").fetchone()[0]
        return parse(newest) if newest else None

    def last_event_at(self) -> datetime | None:
        """Return the time of the last event."""
        with self._errors():
            last = self._last_event()
        return parse(last[1]) if last else None

    def events(self, newest: int = 100) -> list[dict[str, Any]]:
        """Return the newest events in order."""
        with self._errors():
            rows = self._db.execute("SELECT * FROM events ORDER BY seq DESC LIMIT ?", [newest]).fetchall()
        return [dict(zip(EVENT_COLUMNS, row[:-1], strict=True)) for row in reversed(rows)]

    def check(self) -> None:
        """Raise `DamagedError` for anything in the file that is not as it was written."""
        with self._errors():
            database.check_pages(self.path, self._db)
            self._newest_token()
            for name, *_ in self._db.execute("SELECT name FROM facts").fetchall():
                self.fact(name)
        self.check_events()
        self.cycles()
        self.verifications()
        self.pending(-1)

    def check_events(self) -> None:
        """Raise `DamagedError` where the chain of events is broken."""
        previous = ""
        with self._errors():
            for row in self._db.execute("SELECT * FROM events ORDER BY seq"):
                self._check([*row[:-1], previous], row[-1], f"event {row[0]}, or the one before it,")
                previous = row[-1]

    def add_verification(self, done: Verification) -> None:
        """Write the sums of a forecast, once; inside `writing`."""
        row = (
            iso(done.init_time),
            done.revision,
            iso(done.at),
            done.model,
            done.model_version,
            json.dumps(done.sums, sort_keys=True),
        )
        self._db.execute("INSERT INTO verifications VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, digest(row)))

    def verifications(self, since: datetime | None = None) -> list[Verification]:
        """Return the sums of the forecasts from `since` on, by init time."""
        query = "SELECT * FROM verifications WHERE init_time >= ? ORDER BY init_time, revision"
        with self._errors():
            rows = self._db.execute(query, [iso(since) if since else ""]).fetchall()
        for row in rows:
            self._check(row[:-1], row[-1], f"verification of {row[0]}")
        return [Verification(parse(row[0]), row[1], parse(row[2]), row[3], row[4], json.loads(row[5])) for row in rows]

    def unverified(self) -> list[Cycle]:
        """Return the visible rows that have no verification."""
        query = (
            f"SELECT {', '.join(COLUMNS)}, row_sha256 FROM cycles WHERE state IN (?, ?) AND NOT EXISTS (SELECT 1 FROM "
            "verifications v WHERE v.init_time = cycles.init_time AND v.revision = cycles.revision) ORDER BY init_time"
        )
        with self._errors():
            rows = self._db.execute(query, [str(state) for state in VISIBLE]).fetchall()
        return [self._cycle(row) for row in rows]

    def enqueue(self, name: str, content: dict[str, Any]) -> None:
        """Keep a record for the tracker until it has arrived there; inside `writing`. A name comes once."""
        row = (name, json.dumps(content, sort_keys=True))
        self._db.execute(
            "INSERT OR IGNORE INTO outbox (name, content, row_sha256) VALUES (?, ?, ?)", (*row, digest(row))
        )

    def pending(self, most: int = 1000) -> list[tuple[int, dict[str, Any]]]:
        """Return the oldest records that the tracker does not have yet; -1: all of them."""
        query = "SELECT seq, name, content, row_sha256 FROM outbox WHERE sent_at IS NULL ORDER BY seq LIMIT ?"
        with self._errors():
            rows = self._db.execute(query, [most]).fetchall()
        for _, name, content, expected in rows:
            self._check((name, content), expected, f"record '{name}'")
        return [(row[0], json.loads(row[2])) for row in rows]

    def mark_sent(self, seqs: Sequence[int], at: datetime) -> None:
        """Record that the tracker has these records, and forget those that it has had for a month."""
        with self.writing():
            self._db.executemany("UPDATE outbox SET sent_at = ? WHERE seq = ?", [(iso(at), seq) for seq in seqs])
            self._db.execute("DELETE FROM outbox WHERE sent_at < ?", [iso(at - KEPT_SENT)])

    def fact(self, name: str) -> str | None:
        """Return a fact that outlives a process."""
        with self._errors():
            row = self._db.execute("SELECT * FROM facts WHERE name = ?", [name]).fetchone()
        if row:
            self._check(row[:-1], row[-1], f"fact '{name}'")
        return row[1] if row else None

    def set_fact(self, name: str, value: str) -> None:
        """Remember a fact; inside `writing`."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, value, digest((name, value))))

    def _newest_token(self) -> int:
        row = self._db.execute("SELECT * FROM fence").fetchone()
        if row is None:
            return 0
        self._check(row[:-1], row[-1], "the fence")
        return int(row[1])

    def _last_event(self) -> Sequence[Any] | None:
        rows = self._db.execute("SELECT * FROM events ORDER BY seq DESC LIMIT 2").fetchall()
        if not rows:
            return None
        row: tuple[Any, ...] = rows[0]
        self._check([*row[:-1], rows[1][-1] if len(rows) > 1 else ""], row[-1], f"event {row[0]}")
        return row

    def _create(self) -> None:
        if self._version() == 0:
            self._db.execute("BEGIN IMMEDIATE")  # two processes may make it at once
            if self._version() == 0:
                for statement in SCHEMA.split(";\n"):
                    if statement.strip():
                        self._db.execute(statement)
            self._db.execute("COMMIT")

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _check_version(self) -> None:
        if (found := self._version()) != VERSION:
            raise InputError(f"{self.path}: version is {found}, expected {VERSION}: use the fieldcast that wrote it")

    def _cycle(self, row: Sequence[Any]) -> Cycle:
        self._check(row[:-1], row[-1], f"cycle {row[0]}")
        values = dict(zip(COLUMNS, row[:-1], strict=True))
        times = {name: parse(values[name]) if values[name] else None for name in TIMES}
        own = {"state": State(values["state"]), "timings": json.loads(values["timings"])}
        return Cycle(**(values | times | own))

    def _check(self, values: Sequence[Any], expected: str, what: str) -> None:
        database.check_row(self.path, values, expected, what)

    def _errors(self) -> AbstractContextManager[None]:
        return database.errors(self.path)


def _row(cycle: Cycle) -> dict[str, Any]:
    values = asdict(cycle)
    for name in TIMES:
        values[name] = iso(values[name]) if values[name] else ""
    values["state"] = str(cycle.state)
    values["timings"] = json.dumps(cycle.timings, sort_keys=True)
    return values | {"row_sha256": digest(list(values.values()))}
