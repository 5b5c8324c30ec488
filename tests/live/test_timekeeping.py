"""Clocks that jump under any scheduler: no init time is lost, and none is without a row."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fieldcast.pipeline.errors import BusyError
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.ledger import VISIBLE, Ledger, State
from fieldcast.pipeline.live.archive.publish import LEDGER
from fieldcast.pipeline.live.clock import SystemClock
from fieldcast.pipeline.live.context import PLANNED_AT_ONCE, LiveContext
from fieldcast.pipeline.live.timekeeping import Look, jump
from tests.live.clocks import SimulatedClock
from tests.live.contexts import START, live_context, minutes

pytestmark = pytest.mark.usefixtures("unsynced")
HOURS = timedelta(hours=6)
STEP = minutes(5)


def look(context: LiveContext) -> bool:
    """Run what is due; return whether the look decided anything."""
    try:
        cycle.run(context)
    except BusyError:
        return False
    return True


def wake(context: LiveContext, count: int, off: timedelta = timedelta()) -> list[bool]:
    """Wake every five minutes, with a clock that is `off`."""
    clock = context.clock
    assert isinstance(clock, SimulatedClock)
    looks = []
    for _ in range(count):
        clock.sleep(300)
        right = clock.now()
        clock.set(right + off)
        hide_future(context, right)
        looks.append(look(context))
        clock.set(right)
    return looks


def hide_future(context: LiveContext, now: datetime) -> None:
    """Let the feed have no frame that is yet to be observed."""
    whole = getattr(context.observations, "whole", context.observations)

    class Feed:
        def __init__(self) -> None:
            self.whole = whole

        def fetch_frames(self, since: datetime, until: datetime):  # type: ignore[no-untyped-def]
            return whole.fetch_frames(min(since, now), min(until, now))

        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
            return getattr(whole, name)

    context.observations = Feed()  # type: ignore[assignment]


def states(context: LiveContext) -> dict[datetime, State]:
    """Return the state that readers see of each init time."""
    shown: dict[datetime, State] = {}
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        for row in ledger.cycles():
            if row.state in VISIBLE or row.init_time not in shown:
                shown[row.init_time] = row.state
    return shown


@pytest.mark.parametrize("off", [timedelta(hours=30), timedelta(hours=5), timedelta(days=365)], ids=str)
def test_nothing_is_lost_by_a_clock_that_is_ahead_for_three_wakings(tmp_path: Path, off: timedelta) -> None:
    context = live_context(tmp_path)
    wake(context, 3)
    wake(context, 3, off)
    assert wake(context, 4)[-1]
    seen = states(context)
    expected = [START + i * STEP for i in range(1, 11)]
    assert [seen[it] for it in expected] == [State.PUBLISHED] * 10
    assert all(state not in (State.SKIPPED, State.FAILED) for state in seen.values())
    assert wake(context, 3) == [True] * 3
    assert states(context)[START + 13 * STEP] is State.PUBLISHED


@pytest.mark.parametrize("back", [timedelta(hours=7), timedelta(minutes=30)], ids=str)
def test_a_clock_that_began_ahead_leaves_no_init_time_without_a_row(tmp_path: Path, back: timedelta) -> None:
    context = live_context(tmp_path)
    wake(context, 2, back)
    wake(context, 8)
    seen = states(context)
    present = sorted(it for it in seen if it <= START + 10 * STEP)
    assert present[-8:] == [START + i * STEP for i in range(3, 11)]
    assert all(seen[it] is State.PUBLISHED for it in present[-8:])


def test_a_year_ahead_makes_rows_of_a_week_at_most(tmp_path: Path) -> None:
    context = live_context(tmp_path)
    wake(context, 1)
    assert wake(context, 2, timedelta(days=365)) == [False, True]
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        assert len(ledger.cycles()) == PLANNED_AT_ONCE + 1
        assert [event["event"] for event in ledger.events(10**5)].count("clock_jump") == 1
        assert [event["event"] for event in ledger.events(10**5)].count("out_of_service") == 1


def test_time_that_has_passed_is_no_jump() -> None:
    before = Look(START, 100.0)
    assert jump(before, Look(START + timedelta(days=2), 100 + 2 * 86400.0), HOURS) is None  # a machine stood still
    assert jump(before, Look(START + HOURS, 0.0), HOURS) is None  # a restart catches up with that
    assert jump(before, Look(START + timedelta(days=2), 400.0), HOURS) == timedelta(days=2)
    assert jump(before, Look(START - STEP, 400.0), HOURS) == -STEP
    assert jump(before, Look(START - timedelta(seconds=1), 400.0), HOURS) is None
    assert jump(None, before, HOURS) is None


def test_the_machines_seconds_go_on_in_a_suspend() -> None:
    import time

    assert abs(SystemClock().monotonic() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5
