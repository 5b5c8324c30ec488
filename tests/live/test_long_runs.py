"""Days of five-minute cycles, and many wakeups of the service: nothing missed, doubled or accumulated."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest

from fieldcast.pipeline.config import Schedule
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.ledger import LEDGER, VISIBLE, Ledger
from fieldcast.pipeline.live.archive.publish import audit
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.outcomes import Result
from fieldcast.pipeline.live.schedule import cron_trigger
from tests.campaign import size
from tests.conftest import ROOT
from tests.live.clocks import SimulatedClock
from tests.live.contexts import minutes, params, write_reference

ZONE = "Europe/Vienna"
MOMENTS = {
    "an hour left out": datetime(2024, 3, 31, 1, tzinfo=UTC),
    "an hour twice": datetime(2024, 10, 27, 1, tzinfo=UTC),
    "leap day": datetime(2024, 2, 29, tzinfo=UTC),
}
STEPS = size(8, 144)  # of five minutes, before and after the moment
WAKEUPS, SETTLED, WINDOW = size(20, 150), size(12, 50), size(2, 20)
MEGABYTES = 3.0  # by which memory may grow from one window to the next


@pytest.fixture
def local_time(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the machine's own time zone have daylight saving time."""
    monkeypatch.setenv("TZ", ZONE)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def wakeups(start: datetime, end: datetime) -> Iterator[datetime]:
    """Yield when a schedule in local time wakes; half of the wakeups are late, and some do not happen."""
    trigger = cron_trigger(Schedule(cron="*/5 * * * *", time_zone=ZONE))
    rng, before, now = random.Random(start.day), None, start
    while (before := trigger.get_next_fire_time(before, now)).astimezone(UTC) < end:
        now = before.astimezone(UTC) + timedelta(seconds=rng.choice([0, 0, 7, 61]))
        if rng.random() > 0.05:
            yield now
    yield end - timedelta(seconds=1)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_cycles_at_five_minutes(moment: str, tmp_path: Path, local_time: None) -> None:
    due = [MOMENTS[moment] + i * minutes(5) for i in range(-STEPS, STEPS)]
    write_reference(tmp_path / "checkpoint")
    clock = SimulatedClock(due[0])
    context = LiveContext(params(), tmp_path / "live", clock, tmp_path)
    done: Counter[datetime] = Counter()
    for now in wakeups(due[0], due[-1] + minutes(5)):
        clock.sleep((now - clock.now()).total_seconds())
        done.update(it.init_time for it in cycle.run(context) if it.result is Result.DONE)
    assert done == dict.fromkeys(due, 1)
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        rows, events = ledger.cycles(), ledger.events(10**6)
        assert audit(context.folder, ledger) == []
    assert [row.init_time for row in rows] == due
    assert all(row.state in VISIBLE and row.quality == "good" for row in rows)
    published = Counter(it["init_time"] for it in events if it["event"] == "published")
    assert published == {iso(init_time): 1 for init_time in due}


GROWTH = """
import sys
from pathlib import Path
import psutil
from fieldcast.pipeline.live.outcomes import Result
from fieldcast.pipeline.live.scheduler import Server
from tests.live.clocks import SimulatedClock
from tests.live.contexts import START, params
retention = {"cycles": 50, "observations_hours": 1}
clock, process = SimulatedClock(START), psutil.Process()
server = Server(params({"model": "./checkpoint", "retention": retention}), Path("live"), clock)
for _ in range(int(sys.argv[1])):
    assert [it.result for it in server.tick()] == [Result.DONE]
    print(process.memory_info().rss / 1e6)
    clock.sleep(300)
"""


@pytest.mark.slow
def test_the_service_does_not_grow(tmp_path: Path) -> None:
    """A process of its own, as the service is one: in this one, other tests leave memory behind."""
    write_reference(tmp_path / "checkpoint")
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "PYTHONPATH": str(ROOT),
        "MALLOC_ARENA_MAX": "1",
    }
    command = [sys.executable, "-c", GROWTH, str(WAKEUPS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used = [float(line) for line in done.stdout.split()]
    assert len(used) == WAKEUPS
    windows = [median(used[start : start + WINDOW]) for start in range(SETTLED, WAKEUPS, WINDOW)]
    growth = [later - earlier for earlier, later in pairwise(windows)]
    assert median(growth) < MEGABYTES, windows  # a leak grows all the time; pages that come once are a step
