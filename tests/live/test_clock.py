"""Spellings of times, which are UTC whatever the machine thinks."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest

from fieldcast.pipeline.datasets.times import from_numpy, to_numpy
from fieldcast.pipeline.live.clock import SystemClock, iso, parse, stamp
from tests.live.clocks import SimulatedClock

MOMENT = datetime(2020, 10, 31, 6, 5, tzinfo=UTC)


@pytest.fixture(params=["UTC", "Asia/Kolkata", "America/New_York"])
def _zone(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let the machine live in another time zone for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_zone")
def test_every_spelling_comes_back() -> None:
    assert stamp(MOMENT) == "20201031T060500Z"
    assert iso(MOMENT) == "2020-10-31T06:05:00Z"
    for text in (
        stamp(MOMENT),
        iso(MOMENT),
        "20201031T060500",
        "2020-10-31T06:05",
        "2020-10-31 06:05",
        "2020-10-31T07:05+01:00",
    ):
        assert parse(text) == MOMENT
        assert parse(text).utcoffset() == timedelta(0)
    assert from_numpy(to_numpy(MOMENT)) == MOMENT
    assert to_numpy(MOMENT) == np.datetime64("2020-10-31T06:05", "ns")
    away = MOMENT.astimezone(timezone(timedelta(hours=-3)))
    assert (stamp(away), iso(away), to_numpy(away)) == (stamp(MOMENT), iso(MOMENT), to_numpy(MOMENT))


@pytest.mark.parametrize("text", ["", "today", "2020-13-01", "20201031T0605Zz"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|month"):
        parse(text)


def test_texts_sort_as_times_do() -> None:
    moments = [datetime(1969, 12, 31, 23, tzinfo=UTC), MOMENT, datetime(2100, 1, 1, tzinfo=UTC)]
    assert sorted(map(iso, moments)) == [iso(it) for it in moments]
    assert [from_numpy(to_numpy(it)) for it in moments] == moments


def test_clocks() -> None:
    simulated = SimulatedClock(MOMENT)
    simulated.sleep(90)
    simulated.set(MOMENT - timedelta(days=1))
    assert (simulated.now(), simulated.monotonic()) == (MOMENT - timedelta(days=1), 90)
    system = SystemClock()
    before = system.monotonic()
    system.sleep(0.01)
    assert system.monotonic() - before >= 0.01
    assert system.now().tzinfo is UTC
