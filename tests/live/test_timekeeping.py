"""Clocks that jump, under any scheduler: no init time is lost, none is without a row, and none is issued twice."""

import time
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fieldcast.pipeline.errors import BusyError
from fieldcast.pipeline.live import context as contexts_module
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.ledger import LEDGER, VISIBLE, Cycle, Ledger, State
from fieldcast.pipeline.live.archive.publish import audit
from fieldcast.pipeline.live.clock import SystemClock, iso
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.monitoring.status import read_status
from fieldcast.pipeline.live.outcomes import ExitCode
from fieldcast.pipeline.live.timekeeping import FeedTimes, Look
from tests.campaign import cases
from tests.live import contexts, feeds
from tests.live.clocks import SimulatedClock
from tests.live.contexts import live_context, minutes, radar_context

STEP = minutes(10)  # of the radar, and of the wakings
HOUR = timedelta(hours=1)
BACKFILL = {"backfill_hours": 1}


class Machine:
    """A machine whose clock may be off, and a feed that has what has been observed."""

    def __init__(self, root: Path, *, simulated: bool) -> None:
        self.root, self.simulated = root, simulated
        self.start = contexts.START if simulated else feeds.START + HOUR
        self.now, self.clock = self.start, SimulatedClock(self.start)
        self.context = self._simulated() if simulated else self._radar()

    def wake(self, count: int, off: timedelta = timedelta(), every: timedelta = STEP) -> list[bool]:
        """Wake so many times with a clock that is `off`; return at which looks it was believed."""
        looks = []
        for _ in range(count):
            self.clock.sleep(every.total_seconds())
            self.pass_time(every)
            self.clock.set(self.now + off)
            looks.append(self._look())
        return looks

    def start_anew(self) -> None:
        """Let the machine start, its seconds from nothing."""
        self.clock = SimulatedClock(self.now)
        self.context.clock = self.context.observations._clock = self.clock

    def pass_time(self, span: timedelta) -> None:
        self.now += span
        self._deliver()

    def rows(self) -> dict[datetime, Cycle]:
        with Ledger(self.context.folder / LEDGER, read_only=True) as ledger:
            assert audit(self.context.folder, ledger) == []
            return {row.init_time: row for row in ledger.cycles()}

    def events(self) -> Counter[str]:
        with Ledger(self.context.folder / LEDGER, read_only=True) as ledger:
            events = ledger.events(10**6)
        issued = Counter(event["init_time"] for event in events if event["event"] in ("published", "degraded"))
        assert set(issued.values()) <= {1}  # never twice
        return Counter(event["event"] for event in events)

    def due(self, after: int = 1) -> list[datetime]:
        """Return the init times that have come up, from so many wakings after the start on."""
        step = self.context.schedule.every
        return self.context.schedule.after(self.start + after * STEP - step, self.now)

    def require_all(self, after: int = 1) -> None:
        """Assert that every init time that has come up has a good forecast."""
        rows = self.rows()
        assert {it: rows[it].quality if it in rows else "no row" for it in self.due(after)} == dict.fromkeys(
            self.due(after), "good"
        )

    def _look(self) -> bool:
        refusal = None
        try:
            cycle.run(self.context)
        except BusyError as error:
            refusal = error
        assert refusal is None or str(refusal).startswith(f"the clock shows {iso(self.clock.now())}")
        assert refusal is None or refusal.exit_code == ExitCode.TRY_AGAIN
        return refusal is None

    def _simulated(self) -> LiveContext:
        context = live_context(self.root, self.start, BACKFILL)
        context.clock = context.observations._clock = self.clock
        return context

    def _radar(self) -> LiveContext:
        self._deliver()
        return radar_context(self.root, self.clock, BACKFILL)

    def _deliver(self) -> None:
        last = int((self.now - feeds.START) / minutes(1)) if not self.simulated else -1
        for offset in range(0, last + 1, 10):
            if not (self.root / "feed" / f"rain_{offset:04d}.nc").exists():
                feeds.write_bom(self.root / "feed", offset)


@pytest.fixture(params=["radar", "simulated"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, simulated=request.param == "simulated")


@pytest.fixture
def radar(tmp_path: Path) -> Machine:
    return Machine(tmp_path, simulated=False)


SPANS = (2 * HOUR, 30 * HOUR, timedelta(days=365), -7 * HOUR, minutes(45), -minutes(45))
OFF = [(machine, span) for machine in ("radar", "simulated") for span in SPANS]
IN_THE_SUITE = [("radar", 30 * HOUR), ("radar", -minutes(45)), ("simulated", minutes(45)), ("simulated", -7 * HOUR)]


@pytest.mark.parametrize(("machine", "off"), cases(OFF, IN_THE_SUITE), indirect=["machine"], ids=str)
def test_a_clock_that_is_wrong_for_three_wakings_loses_nothing(machine: Machine, off: timedelta) -> None:
    assert machine.wake(3) == [True] * 3
    before = machine.rows().keys()
    every = minutes(5) if machine.simulated else STEP  # a simulation is no witness
    assert machine.wake(3, off, every) == [False] * 3
    with pytest.raises(BusyError, match="the clock shows"):
        cycle.run(machine.context, dry=True)
    assert machine.rows().keys() == before
    assert machine.events()["clock_jump"] == 1
    assert machine.wake(3) == [True] * 3
    machine.require_all()
    assert machine.events()["clock_jump"] == 1


def test_a_feed_contradicts_a_clock_for_as_long_as_it_is_ahead(radar: Machine) -> None:
    radar.wake(3)
    assert radar.wake(3, 30 * HOUR, 2 * STEP) == [False] * 3
    assert radar.wake(1) == [True]
    radar.require_all()


def test_a_clock_that_jumps_twice(radar: Machine) -> None:
    radar.wake(2)
    assert radar.wake(2, 5 * HOUR) == [False] * 2
    assert radar.wake(2, -3 * HOUR) == [False] * 2
    assert radar.wake(2) == [True] * 2
    radar.require_all()
    assert radar.events()["clock_jump"] == 2


def test_a_clock_that_began_ahead_leaves_no_init_time_without_a_row(machine: Machine) -> None:
    assert machine.wake(2, 7 * HOUR) == [True] * 2
    assert machine.wake(6) == [not machine.simulated] * 3 + [True] * 3
    machine.require_all(after=3)
    assert machine.events()["clock_jump"] == 1 + machine.simulated


def test_what_a_believed_future_has_ended_comes_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path, simulated=True)
    machine.wake(2)
    assert machine.wake(5, 5 * HOUR)[-1]  # half an hour: no witness is left to contradict it
    ahead = machine.rows()
    skipped = [it for it, row in ahead.items() if row.state is State.SKIPPED]
    assert len(skipped) > 40
    assert {ahead[it].reason for it in skipped} == {"out of service for longer than live.backfill_hours"}
    published = {it for it, row in ahead.items() if row.state in VISIBLE}
    assert machine.wake(5)[-1]
    rows = machine.rows()
    assert all(rows[it] == ahead[it] for it in published - {it for it in published if it in machine.due()})
    assert machine.events()["reopened"] >= 1
    assert [it for it in rows if it > machine.now] == sorted(it for it in published if it > machine.now)
    machine.require_all()
    machine.wake(3)
    machine.require_all()


@pytest.mark.parametrize("machine", ["radar"], indirect=True)
def test_a_machine_that_was_off_catches_up_at_its_first_look(machine: Machine) -> None:
    machine.wake(2)
    machine.pass_time(3 * HOUR)
    machine.start_anew()
    assert machine.wake(1) == [True]
    rows = machine.rows()
    limit = machine.now - HOUR
    assert all(it in rows for it in machine.due())
    skipped = {it for it in machine.due() if machine.start + 2 * STEP < it < limit}
    assert skipped == {it for it, row in rows.items() if row.state is State.SKIPPED}
    assert all(rows[it].quality == "good" for it in machine.due() if it >= limit)


def test_a_machine_that_starts_with_a_clock_ahead_is_contradicted_by_the_feed(radar: Machine) -> None:
    radar.wake(2)
    radar.start_anew()
    assert radar.wake(3, 30 * HOUR) == [False] * 3
    assert radar.wake(1) == [True]
    radar.require_all()


def test_a_machine_that_is_paused_is_believed_by_its_feed(radar: Machine) -> None:
    radar.wake(2)
    radar.pass_time(50 * minutes(1))  # without a second of the machine's own
    assert radar.wake(1) == [True]
    radar.require_all()


def test_a_feed_that_is_down_makes_no_clock_doubtful(radar: Machine) -> None:
    radar.wake(2)
    for path in (radar.root / "feed").iterdir():
        path.unlink()
    radar._deliver = lambda: None  # type: ignore[method-assign]
    assert radar.wake(12) == [True] * 12
    rows = radar.rows()
    assert rows[radar.start + 8 * STEP].state is State.SKIPPED


def test_status_and_dry_run_tell_of_a_clock_in_doubt(radar: Machine) -> None:
    radar.wake(2)
    radar.wake(1, 30 * HOUR)
    (line,) = read_status(radar.context.params, radar.context.folder, radar.clock).late
    assert line.startswith("the clock shows 2024-06-02T07:30:00Z, 1 day, 6:10:00 after the last cycle's look at it")
    with pytest.raises(BusyError, match="newest frame is of 2024-06-01T01:20:00Z"):
        cycle.run(radar.context, dry=True)
    radar.clock.set(radar.now)
    late = read_status(radar.context.params, radar.context.folder, radar.clock).late
    assert not any(it.startswith("the clock shows") for it in late)


def test_one_look_enters_so_many_rows_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts_module, "PLANNED_AT_ONCE", 7)
    machine = Machine(tmp_path, simulated=True)
    machine.wake(1)
    machine.wake(1, every=3 * HOUR)
    assert len(machine.rows()) == 1 + 7
    with Ledger(machine.context.folder / LEDGER, read_only=True) as ledger:
        (event,) = (event for event in ledger.events() if event["event"] == "out_of_service")
    assert event["detail"].startswith("29 init times from 2024-06-01T06:15:00Z to 2024-06-01T08:35:00Z get no rows")


LAST = Look(feeds.START, 100.0, "a")


@pytest.mark.parametrize(
    ("hours", "seconds", "boot", "right"),
    [
        (48, 48 * 3600, "a", True),
        (0.4, 0, "a", True),
        (0.6, 0, "a", False),
        (48, 47.4 * 3600, "a", False),
        (0.4, 9, "b", True),
        (48, 48 * 3600, "b", False),
        (0.0, 300, "a", True),
        (-0.0005, 300, "a", True),
        (-0.01, 300, "a", False),
    ],
)
def test_a_clock_that_goes_on(hours: float, seconds: float, boot: str, right: bool) -> None:
    assert Look(feeds.START + hours * HOUR, 100 + seconds, boot).goes_on(LAST) is right


@pytest.mark.parametrize(
    ("hours", "boot", "before", "newest", "right"),
    [
        (30, "a", -0.1, 29.9, True),
        (30, "a", -0.1, 29.3, False),
        (30, "a", -120, -90.2, True),  # a feed that is five days behind
        (30, "a", -120, -91, False),
        (30, "a", -0.1, 0.1, False),
        (30, "b", -0.1, 0.1, False),
        (30, "b", -0.1, 28.1, True),  # two hours: cycles wait for that
        (30, "a", -0.1, 28.1, False),
        (30, "b", None, None, True),
        (30, "a", None, None, False),
        (-7, "a", -0.1, -7.1, True),
        (-7, "a", -0.1, -0.1, False),
        (-0.5, "a", -0.1, -0.45, False),
        (-7, "b", None, None, False),
    ],
)
def test_a_feed_that_confirms_a_clock(
    hours: float, boot: str, before: float | None, newest: float | None, right: bool
) -> None:
    moments = [None if it is None else feeds.START + it * HOUR for it in (before, newest)]
    feed = FeedTimes(*moments, patience=2 * HOUR)
    assert feed.confirms(Look(feeds.START + hours * HOUR, 160.0, boot), LAST) is right


def test_the_machines_seconds_go_on_in_a_suspend() -> None:
    assert abs(SystemClock().monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5
