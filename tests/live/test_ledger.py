"""The ledger under edits by others, flipped bits, kills within a transaction and writers that come back too late."""

import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fieldcast.pipeline.errors import BusyError, CannotWriteError, DamagedError, InputError
from fieldcast.pipeline.live.archive import database, ledger
from fieldcast.pipeline.live.archive.ledger import OPEN, VISIBLE, Cycle, Ledger, State, Verification
from tests.campaign import size
from tests.live.publishing import SEED, START, at, ended, start

CYCLES = 12


def cycle(number: int, state: State = State.PUBLISHED, revision: int = 0) -> Cycle:
    return Cycle(
        at(number),
        revision,
        state,
        attempt=1,
        token=7,
        due_at=at(number),
        deadline_at=at(number + 2),
        started_at=at(number + 1),
        ended_at=at(number + 1),
        reason="what 'has' \"happened\": é",
        model="convlstm",
        model_version="storms/3",
        quality="good",
        n_input_missing=1,
        outside_share=0.1 + 0.2,
        run_key="a" * 64,
        manifest_sha256="b" * 64,
        timings={"model": 0.1, "publish": 1e-9},
    )


def fill(path: Path, cycles: int = CYCLES) -> None:
    with Ledger(path) as made:
        for number in range(cycles):
            made.take_token(f"test:{number}")
            with made.writing(fenced=True):
                made.put(cycle(number, State.DUE), "due", at(number))
                made.put(cycle(number), "published", at(number))
                made.enqueue(f"cycle {number}", {"number": number})
                made.set_fact("planned_until", at(number).isoformat())
                done = Verification(at(number), 0, at(number), "convlstm", "3", {"rain": {"n": [float(number)]}})
                made.add_verification(done)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    fill(path)
    return path


@pytest.fixture
def path(filled: Path, tmp_path: Path) -> Path:
    """Return a copy of the ledger with some cycles."""
    return Path(shutil.copy(filled, tmp_path))


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "empty.sqlite") as made:
        made.take_token("test")
        yield made


def everything(path: Path) -> list[Any]:
    """Return all that is read from a ledger."""
    with Ledger(path) as opened:
        opened.take_token("reader")
        return [
            opened.cycles(),
            opened.names(),
            opened.cycles(states=VISIBLE, newest=3),
            opened.cycles(at(2), at(4), VISIBLE),
            opened.cycles(states=OPEN),
            opened.unverified(),
            opened.verifications(),
            opened.pending(),
            opened.fact("planned_until"),
            opened.last_event_at(),
            opened.events(10**6),
        ]


def test_rows_come_back_as_they_were_put(empty: Ledger) -> None:
    rows = [Cycle(at(0)), cycle(1), cycle(1, State.DEGRADED, 1), cycle(3, State.FAILED)]
    with empty.writing(fenced=True):
        for row in reversed(rows):
            empty.put(row, str(row.state), START)
    assert empty.cycles() == rows
    assert empty.cycles(at(1), at(2)) == rows[1:3]
    assert empty.cycles(states=VISIBLE, newest=1) == rows[2:3]
    assert empty.cycles(newest=2) == rows[2:]
    assert empty.cycle(at(1)) == rows[2]
    assert empty.cycle(at(2)) is None
    assert empty.names() == {(f"{row.init_time:%Y-%m-%dT%H:%M:%SZ}", row.revision): row.state for row in rows}
    with empty.writing(fenced=True):
        empty.put(replace(rows[0], state=State.RETIRED), "retired", START)
    assert empty.cycles(states=[State.RETIRED]) == [replace(rows[0], state=State.RETIRED)]
    empty.check()


def test_events_form_a_chain(empty: Ledger) -> None:
    assert empty.last_event_at() is None
    with empty.writing():
        for number in range(3):
            empty.note("clock_jump", at(number), f"by {number}", at(7))
    found = empty.events(2)
    assert [(it["seq"], it["event"], it["detail"]) for it in found] == [
        (2, "clock_jump", "by 1"),
        (3, "clock_jump", "by 2"),
    ]
    assert found[-1] == {
        "seq": 3,
        "at": "2020-10-31T06:10:00Z",
        "init_time": "2020-10-31T06:35:00Z",
        "token": 1,
        "event": "clock_jump",
        "detail": "by 2",
    }
    assert empty.last_event_at() == at(2)
    empty.check()


def test_a_later_revision_takes_the_place_of_earlier_ones(empty: Ledger) -> None:
    with empty.writing():
        for revision in range(3):
            row = cycle(0, State.DEGRADED, revision)
            empty.put(row, "degraded", START)
            empty.supersede(row, START)
    assert [row.state for row in empty.cycles()] == [State.SUPERSEDED, State.SUPERSEDED, State.DEGRADED]
    assert empty.cycle(at(0)) == cycle(0, State.DEGRADED, 2)
    assert [row.revision for row in empty.unverified()] == [2]


def test_records_are_kept_until_they_arrived_and_a_month_longer(empty: Ledger) -> None:
    with empty.writing():
        for name in "abca":
            empty.enqueue(name, {"name": name})
    assert empty.pending() == [(1, {"name": "a"}), (2, {"name": "b"}), (3, {"name": "c"})]
    assert empty.pending(most=1) == [(1, {"name": "a"})]
    empty.mark_sent([1, 3], START)
    assert empty.pending() == [(2, {"name": "b"})]
    with empty.writing():
        empty.enqueue("a", {"name": "other"})
    assert empty.pending() == [(2, {"name": "b"})]
    empty.mark_sent([2], START + ledger.KEPT_SENT + timedelta(days=1))
    with empty.writing():
        empty.enqueue("a", {"name": "again"})
    assert [content for _, content in empty.pending()] == [{"name": "again"}]


def test_facts_and_verifications(empty: Ledger) -> None:
    assert empty.fact("alarms") is None
    rows = [Verification(at(n), 0, START, "convlstm", "3", {"rain": {"n": [0.1, n]}}) for n in (2, 0, 1)]
    with empty.writing():
        empty.set_fact("alarms", "a")
        empty.set_fact("alarms", "b")
        for row in rows:
            empty.put(cycle(0), "published", START)
            empty.put(cycle(5), "published", START)
            empty.add_verification(row)
    assert empty.fact("alarms") == "b"
    assert empty.verifications() == [rows[1], rows[2], rows[0]]
    assert empty.verifications(at(1)) == [rows[2], rows[0]]
    assert empty.unverified() == [cycle(5)]


def test_an_error_in_a_transaction_undoes_all_of_it(empty: Ledger) -> None:
    def interrupted() -> None:
        with empty.writing(fenced=True):
            empty.put(cycle(0), "published", START)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert empty.cycles() == []
    assert empty.events() == []
    with empty.writing(fenced=True):
        empty.put(cycle(1), "published", START)
    assert empty.cycles() == [cycle(1)]


def test_only_the_newest_token_may_write(path: Path) -> None:
    with Ledger(path) as old, Ledger(path) as new:
        old.take_token("old")
        with old.writing(fenced=True):
            old.put(cycle(20), "due", START)
        new.take_token("new")
        assert new.token == old.token + 1
        with (
            pytest.raises(BusyError, match=rf"taken over \(token {new.token}, ours {old.token}\)"),
            old.writing(fenced=True),
        ):
            raise AssertionError("not reached")
        with new.writing(fenced=True):
            new.put(cycle(21), "due", START)
        assert [row.init_time for row in new.cycles(at(13))] == [at(20), at(21)]


def test_the_token_is_read_when_no_other_process_can_take_one(empty: Ledger) -> None:
    statements: list[str] = []
    empty._db.set_trace_callback(statements.append)
    with empty.writing(fenced=True):
        pass
    assert statements == ["BEGIN IMMEDIATE", "SELECT * FROM fence", "COMMIT"]


def test_a_writer_makes_others_wait_and_then_give_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    with Ledger(path) as one, Ledger(path) as other:
        one.take_token("one")
        with one.writing():
            with (
                pytest.raises(BusyError, match=r"ledger.sqlite: database is locked: another process is writing"),
                other.writing(),
            ):
                raise AssertionError("not reached")
            assert len(other.cycles()) == CYCLES  # readers are not disturbed


def test_readers_cannot_write_and_make_no_file(path: Path, tmp_path: Path) -> None:
    with Ledger(path, read_only=True) as reader:
        assert len(reader.cycles()) == CYCLES
        with pytest.raises(CannotWriteError, match="readonly"):
            reader.take_token("reader")
    with pytest.raises(InputError, match=r"none.sqlite: no such file: fieldcast cycle writes it"):
        Ledger(tmp_path / "none.sqlite", read_only=True)
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.usefixtures("synced")
def test_every_commit_waits_for_the_disk(empty: Ledger) -> None:
    settings = {name: empty._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("synchronous", "journal_mode")}
    assert settings == {"synchronous": 3, "journal_mode": "delete"}  # EXTRA


def test_a_newer_version_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    for read_only in (True, False):
        with pytest.raises(InputError, match=r"version is 2, expected 1: use the fieldcast that wrote it"):
            Ledger(path, read_only=read_only)


def edit(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        assert connection.execute(statement).rowcount == 1
    connection.close()


COLUMNS = [("cycles", name) for name in (*ledger.COLUMNS, "row_sha256")] + [
    (table, name)
    for table, names in {
        "fence": "token holder row_sha256",
        "events": "at init_time token event detail row_sha256",
        "verifications": "init_time revision at model model_version sums row_sha256",
        "outbox": "name content row_sha256",
        "facts": "value row_sha256",
    }.items()
    for name in names.split()
]
NUMBERS = ("revision", "attempt", "token", "n_input_missing", "outside_share")


@pytest.mark.parametrize(("table", "column"), COLUMNS, ids=[".".join(it) for it in COLUMNS])
def test_every_column_is_covered_by_a_digest(path: Path, table: str, column: str) -> None:
    """Any row, the oldest and the newest included."""
    whole = path.read_bytes()
    key = {"fence": "id", "events": "seq", "outbox": "seq", "facts": "name"}.get(table, "init_time")
    other = f"{column} + 50" if column in NUMBERS else f"'x' || {column}"
    for end in ("min", "max"):
        path.write_bytes(whole)
        edit(path, f"UPDATE {table} SET {column} = {other} WHERE {key} = (SELECT {end}({key}) FROM {table})")
        with pytest.raises(DamagedError, match=r"ledger.sqlite: .* move the file away"), Ledger(path) as opened:
            opened.check()


@pytest.mark.parametrize("seq", [1, 5, 2 * CYCLES - 1])
def test_an_event_taken_out_breaks_the_chain(path: Path, seq: int) -> None:
    edit(path, f"DELETE FROM events WHERE seq = {seq}")
    with Ledger(path) as opened, pytest.raises(DamagedError, match=rf"event {seq + 1}, or the one before it"):
        opened.check_events()


def test_damage_is_noticed_where_it_would_do_harm(path: Path) -> None:
    """A cycle does not check everything each time, but all that it acts upon."""
    whole = path.read_bytes()
    for statement, read in {
        "UPDATE events SET at = '2099-01-01T00:00:00Z' WHERE seq = 24": Ledger.last_event_at,
        "UPDATE facts SET value = '2099'": lambda it: it.fact("planned_until"),
        "UPDATE cycles SET state = 'due' WHERE init_time = '2020-10-31T06:00:00Z'": lambda it: it.cycles(states=OPEN),
        "UPDATE cycles SET state = 'dux' WHERE init_time = '2020-10-31T06:00:00Z'": Ledger.names,
        "UPDATE outbox SET content = '{}' WHERE seq = 3": Ledger.pending,
        "UPDATE fence SET token = 1": lambda it: it.take_token("x"),
    }.items():
        path.write_bytes(whole)
        edit(path, statement)
        with Ledger(path) as opened, pytest.raises(DamagedError, match="move the file away"):
            read(opened)


@pytest.mark.parametrize("tree", ["cycles", "facts", "outbox", "sqlite_autoindex_outbox_1"])
def test_an_entry_that_dropped_out_of_a_page_is_noticed_at_each_start(path: Path, tree: str) -> None:
    """Its own digest is gone with it."""
    with sqlite3.connect(path) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        start_of_page = (connection.execute(query, [tree]).fetchone()[0] - 1) * 4096
    connection.close()
    content = bytearray(path.read_bytes())
    entries = slice(start_of_page + 3, start_of_page + 5)  # how many there are on it
    content[entries] = (int.from_bytes(content[entries], "big") - 1).to_bytes(2, "big")
    path.write_bytes(content)
    for look in (Ledger.check, lambda opened: opened.take_token("test")):
        with pytest.raises(DamagedError, match=r"ledger.sqlite: .* move the file away"), Ledger(path) as opened:
            look(opened)


@pytest.mark.parametrize("seed", [SEED])
def test_no_flipped_bit_goes_unnoticed(path: Path, tmp_path: Path, seed: int) -> None:
    rng, flips = random.Random(seed), size(100, 2000)
    expected = everything(path)
    whole = path.read_bytes()
    copy = tmp_path / "flipped.sqlite"
    noticed = 0
    for _ in range(flips):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        copy.write_bytes(flipped)
        try:
            with Ledger(copy, read_only=True) as opened:
                opened.check()
            found = everything(copy)
        except (DamagedError, InputError):
            noticed += 1
        else:
            assert found == expected
    assert noticed > 0.2 * flips  # the rest of the file is empty or of no meaning


@pytest.mark.parametrize("content", [b"x" * 4096, b"SQLite format 3\0" + bytes(4080)], ids=["text", "zeros"])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"ledger.sqlite: .* move the file away"):
        Ledger(path)


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    """It is what a crash leaves of one that was being made."""
    (tmp_path / "ledger.sqlite").touch()
    fill(tmp_path / "ledger.sqlite", 1)


def test_a_ledger_cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5000)
    with pytest.raises(DamagedError, match=r"ledger.sqlite: .* move the file away"), Ledger(path) as opened:
        opened.check()


def die_within_a_transaction(path: Path) -> None:
    """Be killed while half of a large transaction has reached the file."""
    opened = Ledger(path)
    opened.take_token("dies")
    opened._db.execute("PRAGMA cache_size = 1")
    with opened.writing(fenced=True):
        for number in range(200):
            opened.put(cycle(number, State.FAILED), "failed", START)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_transaction_cut_by_a_kill_is_undone_by_whoever_comes_next(path: Path, read_only: bool) -> None:
    expected = everything(path)[0]
    whole = path.read_bytes()
    assert ended(start(die_within_a_transaction, path)) == -signal.SIGKILL
    assert path.with_name("ledger.sqlite-journal").exists()
    assert path.read_bytes() != whole
    with Ledger(path, read_only=read_only) as opened:
        assert opened.cycles() == expected
        opened.check()


def test_a_reader_without_permission_waits_for_the_next_cycle_to_undo_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ended(start(die_within_a_transaction, path)) == -signal.SIGKILL
    monkeypatch.setattr(os, "access", lambda *_: False)
    with (
        pytest.raises(BusyError, match="its last writer was killed: the next cycle repairs that"),
        Ledger(path, read_only=True) as reader,
    ):
        reader.cycles()


def make(path: Path) -> None:
    with Ledger(path) as made:
        made.take_token("test")


def test_several_processes_may_make_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    started = [start(make, path) for _ in range(4)]
    assert [ended(it) for it in started] == [0] * 4
    with Ledger(path) as opened:
        opened.take_token("test")
        assert opened.token == 5


def test_what_is_old_is_forgotten_and_the_rest_is_whole(path: Path) -> None:
    with Ledger(path) as made:
        made.take_token("test")
        with made.writing():
            made.put(replace(cycle(1, State.RETIRED), retired_at=at(3)), "retired", at(3))
            made.put(replace(cycle(2, State.RETIRED), retired_at=at(9)), "retired", at(9))
            made.put(cycle(3, State.SKIPPED), "skipped", at(4))
            made.put(cycle(4, State.DUE), "due", at(4))
        with made.writing():
            made.forget(at(6))
        left = [made.cycle(at(number)) for number in range(6)]
        assert [row is None for row in left] == [False, True, False, True, False, False]
        assert {done.init_time for done in made.verifications()} == {at(n) for n in range(CYCLES) if n not in (1, 3)}
        events = made.events(1000)
        made.check()
        with made.writing():
            made.note("last", at(20))
            made.forget(at(30))  # all of them are old: two stay, for the chain
        assert 1 <= len(made.events(1000)) <= 2 < len(events) < 2 * CYCLES + 5
        made.check()
        with made.writing():
            made.note("more", at(31))
        made.check()


def test_a_ledger_does_not_grow_with_the_past(tmp_path: Path) -> None:
    sizes = []
    with Ledger(tmp_path / "ledger.sqlite") as made:
        made.take_token("test")
        for day in range(6):
            with made.writing():
                for number in range(day * 100, day * 100 + 100):
                    made.put(replace(cycle(number, State.RETIRED), retired_at=at(number)), "retired", at(number))
                made.forget(at(day * 100 - 100))
            sizes.append([made.rows(f"SELECT count(*) FROM {table}")[0][0] for table in ("cycles", "events")])
    assert sizes[-1] == sizes[-2] == sizes[-3]
    assert sizes[-1][0] <= 200


def steps_of_a_cycle(path: Path, past: int) -> dict[str, int]:
    """Return SQLite's steps in the queries of a cycle, with so many published and so many retired rows of the past."""
    now, counts = at(2 * past), dict[str, int]()
    with Ledger(path) as made:
        made.take_token("test")
        with made.writing():
            for number in range(2 * past):
                state = State.RETIRED if number < past else State.PUBLISHED
                made.put_row(
                    "cycles", ledger._columns(replace(cycle(number, state), ended_at=at(number), retired_at=None))
                )
                if number < 2 * past - 10:
                    made.add_verification(Verification(at(number), 0, at(number), "m", "1", {}))
                    made.enqueue(str(number), {"n": number})
            made.all_verified_before(at(2 * past - 10))
        made.mark_sent(range(1, 2 * past - 10), now)
        for name, query in {
            "unverified": made.unverified,
            "open": lambda: made.cycles(until=now, states=OPEN),
            "overdue": lambda: made.cycles(until=at(past), states=[State.DUE]),
            "catalogue": lambda: made.cycles(states=VISIBLE, newest=20),
            "expired": lambda: made.cycles(until=at(past + 3), states=VISIBLE),
            "superseded": lambda: made.cycles(states=[State.SUPERSEDED]),
            "to delete": lambda: made.to_delete(now),
            "records": made.pending,
            "last event": made.last_event_at,
            "newest": lambda: made.newest_init_time(now),
        }.items():
            steps: list[None] = []
            made._db.set_progress_handler(lambda steps=steps: steps.append(None), 1)
            query()
            made._db.set_progress_handler(None, 1)
            counts[name] = len(steps)
    return counts


def test_the_queries_of_a_cycle_cost_the_same_whatever_the_past(tmp_path: Path) -> None:
    short, long = (steps_of_a_cycle(tmp_path / f"{past}.sqlite", past) for past in (50, 500))
    assert short == long
    assert max(long.values()) < 2000


def test_pages_are_checked_once_an_hour(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = []
    monkeypatch.setattr(Ledger, "check_pages", lambda *_, **__: checks.append(1))
    with Ledger(path) as made:
        for hours, expected in [(0, 1), (0.9, 1), (1, 2), (0.5, 3), (0.6, 3), (None, 4)]:
            made.take_token("test", None if hours is None else START + timedelta(hours=hours))
            assert len(checks) == expected


def test_the_wait_for_verification_reaches_back_to_what_is_published_late(path: Path) -> None:
    with Ledger(path) as made:
        made.take_token("test")
        with made.writing():
            made.put(cycle(50, State.PUBLISHED), "published", at(50))
            made.all_verified_before(at(50))
        assert [row.init_time for row in made.unverified()] == [at(50)]
        with made.writing():
            made.put(cycle(20, State.DEGRADED), "degraded", at(51))
        assert [row.init_time for row in made.unverified()] == [at(20), at(50)]
        with made.writing():
            for number in (20, 50):
                made.add_verification(Verification(at(number), 0, at(60), "m", "1", {}))
            made.all_verified_before(at(50))
        assert made.unverified() == []
        with made.writing():
            made.forget_verifications(at(59))
        assert [row.init_time for row in made.unverified()] == [at(20), at(50)]
