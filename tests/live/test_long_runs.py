"""Whole days of five-minute cycles, and hundreds of wakings of the service: nothing missed, doubled or piled up."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.config import Schedule
from pipeline.live import archive, cycle
from pipeline.live.clock import SimulatedClock, iso
from pipeline.live.ledger import VISIBLE, Ledger
from pipeline.live.outcomes import Result
from pipeline.live.serve import Server, trigger_of
from pipeline.live.station import Station
from tests.live.stations import minutes, params, write_reference

ZONE = "Europe/Vienna"
SPANS = {  # start, hours
    "an hour left out": (datetime(2024, 3, 30, 23, tzinfo=UTC), 4),
    "an hour twice": (datetime(2024, 10, 26, 18, tzinfo=UTC), 24),
    "leap day": (datetime(2024, 2, 28, 22, tzinfo=UTC), 4),
}
WAKINGS, SETTLED = 150, 50
MEGABYTES = 5.0  # by which a service may grow once it has settled


@pytest.fixture
def local_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the machine's own time zone have daylight saving time."""
    monkeypatch.setenv("TZ", ZONE)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def wakings(start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield when a schedule in local time wakes; half of the wakings are late, and some do not happen."""
    trigger = trigger_of(Schedule(cron="*/5 * * * *", time_zone=ZONE))
    rng, before, now = random.Random(start.day), None, start
    while (before := trigger.get_next_fire_time(before, now)).astimezone(UTC) < end:
        now = before.astimezone(UTC) + timedelta(seconds=rng.choice([0, 0, 7, 61]))
        if rng.random() > 0.05:
            yield now
    yield end - timedelta(seconds=1)


@pytest.mark.slow
@pytest.mark.parametrize("span", SPANS)
def test_cycles_at_five_minutes(span: str, tmp_path: Path, local_time: None) -> None:
    start, hours = SPANS[span]
    write_reference(tmp_path / "checkpoint")
    clock = SimulatedClock(start)
    station = Station(params(), tmp_path / "live", clock, tmp_path)
    done: Counter[datetime] = Counter()
    for now in wakings(start, start + timedelta(hours=hours)):
        clock.sleep((now - clock.now()).total_seconds())
        done.update(it.init_time for it in cycle.run(station) if it.result is Result.DONE)
    due = [start + i * minutes(5) for i in range(12 * hours)]
    assert done == dict.fromkeys(due, 1)
    with Ledger(station.folder / archive.LEDGER, read_only=True) as ledger:
        rows, events = ledger.cycles(), ledger.events(10**6)
        assert archive.audit(station.folder, ledger) == []
    assert [row.init_time for row in rows] == due
    assert all(row.state in VISIBLE and row.quality == "good" for row in rows)
    published = Counter(it["init_time"] for it in events if it["event"] == "published")
    assert published == {iso(init_time): 1 for init_time in due}


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.slow
def test_the_service_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    write_reference(tmp_path / "checkpoint")
    clock = SimulatedClock(SPANS["leap day"][0])
    retention = {"cycles": 50, "observations_hours": 1}
    server = Server(params({"model": "./checkpoint", "retention": retention}), tmp_path / "live", clock)
    used = []
    for _ in range(WAKINGS):
        assert [it.result for it in server.tick()] == [Result.DONE]
        used.append(resident_megabytes())
        clock.sleep(300)
    assert used[-1] - used[SETTLED] < MEGABYTES
