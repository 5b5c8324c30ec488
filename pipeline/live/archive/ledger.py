"""The ledger: the state of every cycle, in one SQLite file that survives kills, power loss and two schedulers.

The SHA-256 of an event covers the event before it. Writers hold a token, the newest of which alone may write: a process
that was frozen and wakes up is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from fieldcast.pipeline.errors import BusyError, DamagedError, InputError
from fieldcast.pipeline.live.archive.database import Database, Row, digest
from fieldcast.pipeline.live.clock import iso, parse

LEDGER = "ledger.sqlite"  # in the live folder
CHAIN_START = "chain_start"  # the fact that holds the SHA-256 of the event before the first
CHECKED = "checked_at"  # the fact that holds when the pages were last checked: that takes longer the more they are
CHECKED_EVERY = timedelta(hours=1)
UNVERIFIED = "unverified_since"  # the fact that holds an init time before which every forecast is verified
REST = "rest"  # the fact that holds from when until when nothing comes due, and for which parameters
INDEXES = (  # by which a cycle finds its rows among those of the past
    "CREATE INDEX IF NOT EXISTS cycles_by_state ON cycles (state, init_time)",
    "CREATE INDEX IF NOT EXISTS outbox_waiting ON outbox (seq) WHERE sent_at IS NULL",
    "CREATE INDEX IF NOT EXISTS cycles_to_delete ON cycles (retired_at) WHERE state = 'retired' AND retired_at != ''",
)
KEPT_SENT = timedelta(days=31)  # records that the tracker has


class State(StrEnum):
    """State of a cycle."""

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
"""


@dataclass(frozen=True)
class Cycle:
    """One row: a revision of the forecast of one init time."""

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


class Ledger(Database):
    """One connection to `ledger.sqlite`; made on first use. Times go in and come out aware, UTC."""

    SCHEMA = SCHEMA
    VERSION = 1
    REPAIR = "move the file away; the next cycle writes a new one from the published forecasts"

    def __init__(self, path: Path, *, read_only: bool = False, copy: bool = False) -> None:
        """Open the ledger; `copy`: one in memory, empty where there is no file, whose changes are discarded."""
        if read_only and not path.exists():
            raise InputError(f"{path}: no such file: fieldcast cycle writes it")
        super().__init__(path, "copy" if copy else "read" if read_only else "write")
        self.token = 0
        self.is_orderly = True  # False once a cycle has failed, which may leave files behind

    def take_token(self, holder: str, now: datetime | None = None) -> None:
        """Make this connection the only one that may write; pages are checked, with `now` if they were not in the hour.

        Raise `DamagedError` where SQLite finds them out of order.
        """
        with self.writing():
            for statement in INDEXES:
                self._db.execute(statement)
            if now is None or not self._checked_within_the_hour(now):
                self.check_pages("cycles", "outbox", "facts")
                if now is not None:
                    self.set_fact(CHECKED, iso(now))
            self.token = self._newest_token() + 1
            self.put_row("fence", (1, self.token, holder))

    @contextmanager
    def writing(self, *, fenced: bool = False) -> Iterator[None]:
        """Run the body in one transaction; `fenced`: raise `BusyError` if another process has taken over."""
        with self.transaction():
            if fenced and (newest := self._newest_token()) != self.token:
                raise BusyError(f"{self.path}: another process has taken over (token {newest}, ours {self.token})")
            yield

    def put(self, cycle: Cycle, event: str, at: datetime, detail: str = "") -> None:
        """Write a row and the event that changed it; inside `writing`."""
        self.put_row("cycles", _columns(cycle))
        if cycle.state in VISIBLE:
            self._expect_verification(iso(cycle.init_time))
        self.note(event, at, detail or cycle.reason, cycle.init_time)

    def note(self, event: str, at: datetime, detail: str = "", init_time: datetime | None = None) -> None:
        """Add an event to the chain; inside `writing`."""
        last = self._last_event()
        seq, previous = (last[0] + 1, last[-1]) if last else (1, "")
        row = (seq, iso(at), iso(init_time) if init_time else "", self.token, event, detail)
        self.put_row("events", row, previous)

    def supersede(self, revision: Cycle, at: datetime) -> None:
        """Mark the earlier revisions of an init time as no longer the one to read; inside `writing`."""
        for row in self.cycles(revision.init_time, revision.init_time, VISIBLE):
            if row.revision < revision.revision:
                self.put(replace(row, state=State.SUPERSEDED), "superseded", at, f"by revision {revision.revision}")

    def cycle(self, init_time: datetime, revision: int | None = None) -> Cycle | None:
        """Return a revision of an init time, by default the newest."""
        rows = [row for row in self.cycles(init_time, init_time) if revision in (None, row.revision)]
        return rows[-1] if rows else None

    def cycles(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        states: Iterable[State] | None = None,
        newest: int | None = None,
        skipped: int = 0,
    ) -> list[Cycle]:
        """Return rows by init time and revision; the `newest` of them, or all but the newest `skipped`.

        Raise `DamagedError` for a row that changed.
        """
        conditions: list[str] = ["1"]
        values: list[str] = []
        for comparison, moment in ((">=", since), ("<=", until)):
            if moment:
                conditions.append(f"init_time {comparison} ?")
                values.append(iso(moment))
        if states is not None:
            wanted = [str(state) for state in states]
            column = "+state" if newest else "state"  # + : in order of time, not by the index of states
            conditions.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
        order = f"ORDER BY init_time DESC, revision DESC LIMIT {newest or -1:d} OFFSET {skipped:d}"
        rows = self.rows(f"SELECT * FROM cycles WHERE {' AND '.join(conditions)} {order}", values)
        return [self._cycle(row) for row in reversed(rows)]

    def newest_init_time(self, until: datetime) -> datetime | None:
        """Return the newest init time up to a moment that has a row."""
        rows = self.rows(
            "SELECT init_time FROM cycles WHERE init_time <= ? ORDER BY init_time DESC LIMIT 1", [iso(until)]
        )
        return parse(rows[0][0]) if rows else None

    def ended_after(self, moment: datetime) -> list[Cycle]:
        """Return the rows that ended later than a moment, by init time."""
        rows = self.rows("SELECT * FROM cycles WHERE ended_at > ? ORDER BY init_time, revision", [iso(moment)])
        return [self._cycle(row) for row in rows]

    def remove_cycles(self, init_times: Iterable[datetime]) -> None:
        """Remove the first rows of init times; inside `writing`."""
        self._db.executemany(
            "DELETE FROM cycles WHERE init_time = ? AND revision = 0", [(iso(it),) for it in init_times]
        )

    def forget_verifications(self, after: datetime) -> None:
        """Remove the verifications that were made later than a moment, and their unsent records; inside `writing`."""
        first = self.rows("SELECT min(init_time) FROM verifications WHERE at > ?", [iso(after)])[0][0]
        if first:
            self._expect_verification(first)
        names = "SELECT 'scores ' || init_time || ' ' || revision FROM verifications WHERE at > ?"
        self._db.execute(f"DELETE FROM outbox WHERE sent_at IS NULL AND name IN ({names})", [iso(after)])
        self._db.execute("DELETE FROM verifications WHERE at > ?", [iso(after)])

    def names(self) -> dict[tuple[str, int], State]:
        """Return the state of every row by init time (as `iso` spells it) and revision, without checking the rows."""
        rows = self.rows("SELECT init_time, revision, state FROM cycles")
        try:
            return {(init_time, revision): State(state) for init_time, revision, state in rows}
        except ValueError as error:
            raise DamagedError(f"{self.path}: {error}: {self.REPAIR}") from error

    def last_event_at(self) -> datetime | None:
        """Return the time of the last event."""
        last = self._last_event()
        return parse(last[1]) if last else None

    def events(self, newest: int = 100) -> list[dict[str, Any]]:
        """Return the newest events in order."""
        rows = self.rows("SELECT * FROM events ORDER BY seq DESC LIMIT ?", [newest])
        return [dict(zip(EVENT_COLUMNS, row[:-1], strict=True)) for row in reversed(rows)]

    def check(self) -> None:
        """Raise `DamagedError` for anything in the file that is not as it was written."""
        self.check_pages()
        self._newest_token()
        for (name,) in self.rows("SELECT name FROM facts"):
            self.fact(name)
        self.check_events()
        self.cycles()
        self.verifications()
        self.pending(-1)

    def check_events(self) -> None:
        """Raise `DamagedError` where the chain of events is broken."""
        previous = self.fact(CHAIN_START) or ""
        for row in self.rows("SELECT * FROM events ORDER BY seq"):
            self.checked(row, f"event {row[0]}, or the one before it,", previous)
            previous = row[-1]

    def forget(self, before: datetime) -> None:
        """Remove what ended before a moment and no forecast needs: rows, their verifications, events; inside `writing`.

        Rows of forecasts that readers see, and of those that are yet to be deleted, stay.
        """
        moment, execute = iso(before), self._db.execute
        ended = "(state IN ('skipped', 'failed') AND ended_at < ?1) OR (state = 'retired' AND retired_at < ?1)"
        execute(f"DELETE FROM cycles WHERE init_time < ?1 AND ({ended})", [moment])
        kept = "SELECT 1 FROM cycles c WHERE c.init_time = v.init_time AND c.revision = v.revision"
        execute(f"DELETE FROM verifications AS v WHERE init_time < ?1 AND NOT EXISTS ({kept})", [moment])
        first = "coalesce((SELECT min(seq) FROM events WHERE at >= ?1), (SELECT max(seq) FROM events))"
        old = self.rows(
            f"SELECT seq, row_sha256 FROM events WHERE seq < {first} - 1 ORDER BY seq DESC LIMIT 1", [moment]
        )
        for seq, sha256 in old:
            execute("DELETE FROM events WHERE seq <= ?", [seq])
            self.set_fact(CHAIN_START, sha256)

    def add_verification(self, done: Verification) -> None:
        """Write the sums of a forecast; inside `writing`."""
        sums = json.dumps(done.sums, sort_keys=True)
        row = (iso(done.init_time), done.revision, iso(done.at), done.model, done.model_version, sums)
        self.put_row("verifications", row)

    def verifications(self, since: datetime | None = None) -> list[Verification]:
        """Return the sums of the forecasts from `since` on, by init time."""
        query = "SELECT * FROM verifications WHERE init_time >= ? ORDER BY init_time, revision"
        rows = [
            self.checked(row, f"verification of {row[0]}") for row in self.rows(query, [iso(since) if since else ""])
        ]
        return [Verification(parse(row[0]), row[1], parse(row[2]), row[3], row[4], json.loads(row[5])) for row in rows]

    def unverified(self) -> list[Cycle]:
        """Return the visible rows that have no verification."""
        verified = "SELECT 1 FROM verifications v WHERE v.init_time = c.init_time AND v.revision = c.revision"
        query = (
            f"SELECT * FROM cycles c WHERE state IN (?, ?) AND init_time >= ? AND NOT EXISTS ({verified}) "
            "ORDER BY init_time"
        )
        return [self._cycle(row) for row in self.rows(query, [*map(str, VISIBLE), self.fact(UNVERIFIED) or ""])]

    def all_verified_before(self, init_time: datetime) -> None:
        """Remember that no earlier forecast waits for its verification; inside `writing`."""
        self.set_fact(UNVERIFIED, iso(init_time))

    def rest(self, key: str, since: datetime, until: datetime) -> None:
        """Remember that nothing comes due before `until` by the parameters of this key; inside `writing`."""
        self.set_fact(REST, json.dumps([key, iso(since), iso(until)]))

    def is_resting(self, key: str, now: datetime) -> bool:
        """Return whether nothing can have come due since the last orderly look, by the parameters of this key."""
        rest = self.fact(REST)
        if not rest:
            return False
        of_key, since, until = json.loads(rest)
        return bool(of_key == key and since <= iso(now) < until)

    def end_rest(self) -> None:
        """Forget a rest, before anything is changed that a kill might leave half done."""
        if self.fact(REST):
            with self.writing(fenced=True):
                self.set_fact(REST, "")

    def to_delete(self, before: datetime) -> list[Cycle]:
        """Return the retired rows, not later than a moment, whose forecast is not known to be deleted."""
        conditions = "state = 'retired' AND retired_at != '' AND retired_at <= ?"
        query = f"SELECT * FROM cycles INDEXED BY cycles_to_delete WHERE {conditions} ORDER BY init_time"
        return [self._cycle(row) for row in self.rows(query, [iso(before)])]

    def mark_deleted(self, cycle: Cycle) -> None:
        """Remember that the forecast of a retired row is deleted; inside `writing`."""
        self.put_row("cycles", _columns(replace(cycle, retired_at=None)))

    def enqueue(self, name: str, content: dict[str, Any]) -> None:
        """Keep a record for the tracker until it has arrived there; inside `writing`. A name comes once."""
        row = (name, json.dumps(content, sort_keys=True))
        query = "INSERT OR IGNORE INTO outbox (name, content, row_sha256) VALUES (?, ?, ?)"
        self._db.execute(query, (*row, digest(row)))

    def pending(self, most: int = 1000) -> list[tuple[int, dict[str, Any]]]:
        """Return the oldest records that the tracker does not have yet; -1: all of them."""
        query = "SELECT seq, name, content, row_sha256 FROM outbox WHERE sent_at IS NULL ORDER BY seq LIMIT ?"
        rows = self.rows(query, [most])
        return [(seq, json.loads(self.checked(tuple(row), f"record '{row[0]}'")[1])) for seq, *row in rows]

    def mark_sent(self, seqs: Sequence[int], at: datetime) -> None:
        """Record that the tracker has these records, and forget those that it has had for a month."""
        with self.writing():
            self._db.executemany("UPDATE outbox SET sent_at = ? WHERE seq = ?", [(iso(at), seq) for seq in seqs])
            self._db.execute("DELETE FROM outbox WHERE sent_at < ?", [iso(at - KEPT_SENT)])

    def _checked_within_the_hour(self, now: datetime) -> bool:
        checked = self.fact(CHECKED)
        return checked is not None and timedelta() <= now - parse(checked) < CHECKED_EVERY

    def _expect_verification(self, init_time: str) -> None:
        since = self.fact(UNVERIFIED)
        if since and init_time < since:
            self.set_fact(UNVERIFIED, init_time)

    def _newest_token(self) -> int:
        rows = self.rows("SELECT * FROM fence")
        return int(self.checked(rows[0], "the fence")[1]) if rows else 0

    def _last_event(self) -> Row | None:
        rows = self.rows("SELECT * FROM events ORDER BY seq DESC LIMIT 2")
        if not rows:
            return None
        self.checked(rows[0], f"event {rows[0][0]}", rows[1][-1] if len(rows) > 1 else "")
        return rows[0]

    def _cycle(self, row: Row) -> Cycle:
        values = dict(zip(COLUMNS, self.checked(row, f"cycle {row[0]}"), strict=True))
        values |= {name: parse(values[name]) if values[name] else None for name in TIMES}
        return Cycle(**(values | {"state": State(values["state"]), "timings": json.loads(values["timings"])}))


def _columns(cycle: Cycle) -> list[Any]:
    values = asdict(cycle)
    values |= {name: iso(values[name]) if values[name] else "" for name in TIMES}
    values |= {"state": str(cycle.state), "timings": json.dumps(cycle.timings, sort_keys=True)}
    return list(values.values())
