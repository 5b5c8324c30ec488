"""Wakings that find nothing due: known from the ledger alone, before anything heavy is imported."""

import json
import subprocess
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.errors import DamagedError
from fieldcast.pipeline.live import waking
from fieldcast.pipeline.live.archive.durable import FAILPOINT
from fieldcast.pipeline.live.archive.ledger import LEDGER
from fieldcast.pipeline.live.clock import Clock
from fieldcast.pipeline.live.feed.store import LiveObservations
from fieldcast.pipeline.live.monitoring.metrics import METRICS
from fieldcast.pipeline.live.outcomes import Result
from tests.conftest import merged
from tests.live.clocks import SimulatedClock
from tests.live.contexts import PARAMS, START, minutes, params, write_reference

KEY = "of the parameters"
HEAVY = (
    *("numpy", "pandas", "xarray", "dask", "zarr", "torch", "scipy", "matplotlib", "mlflow"),
    *("yaml", "apscheduler", "prometheus_client", "jinja2", "h5py", "fsspec", "requests"),
    *("fieldcast.models", "fieldcast.pipeline.config", "fieldcast.pipeline.live.context"),
)
LOADED = f"""
import json, sys
from fieldcast.pipeline.cli.main import main
try:
    main()
finally:
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


@pytest.fixture
def project(tmp_path: Path, tracker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with a checkpoint, parameters and an empty tracker, as working directory."""
    write_reference(tmp_path / "checkpoint")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged(PARAMS, {"live": {"model": "./checkpoint"}})))
    (tmp_path / "mlflow.db").write_bytes(tracker.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


class Looks:
    """A schedule that is woken by hand, and counts how often more than a look at the ledger was needed."""

    def __init__(self, project: Path, clock: Clock, changes: dict[str, object] | None = None) -> None:
        self.folder, self.clock, self.changes, self.taken = project / "live", clock, changes, 0

    def params(self) -> Params:
        self.taken += 1
        return params(self.changes)

    def wake(self, key: str = KEY) -> list[Result]:
        return [outcome.result for outcome in waking.wake(self.params, self.folder, self.clock, key)]


def test_a_schedule_rests_until_the_next_frame(project: Path) -> None:
    looks = Looks(project, clock := SimulatedClock(START + timedelta(seconds=20)))
    assert looks.wake() == [Result.DONE]
    for _ in range(4):
        clock.sleep(60)
        assert looks.wake() == []
    assert looks.taken == 1
    clock.sleep(39)
    assert looks.wake() == []
    assert looks.taken == 1
    clock.sleep(1)
    assert looks.wake() == [Result.DONE]
    assert looks.taken == 2


def test_a_rest_renews_the_time_of_the_last_look_for_monitors(project: Path) -> None:
    looks = Looks(project, clock := SimulatedClock(START))
    looks.wake()
    before = (looks.folder / METRICS).read_text()
    clock.sleep(60)
    looks.wake()
    after = (looks.folder / METRICS).read_text()
    changed = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert [line.split() for line in changed] == [
        ["fieldcast_last_look_timestamp_seconds", str(START.timestamp() + 60)],
        ["fieldcast_newest_forecast_age_seconds", "60.0"],
    ]


def test_other_parameters_end_a_rest(project: Path) -> None:
    looks = Looks(project, SimulatedClock(START))
    looks.wake()
    for key in ("of others", ""):
        assert looks.wake(key) == []
    assert looks.taken == 3
    assert waking.key_of(project / "params.yaml") != waking.key_of(project / "mlflow.db")
    assert waking.key_of(project / "nowhere.yaml") == ""


@pytest.mark.parametrize("off", [-minutes(1), minutes(10), timedelta(days=1)])
def test_a_clock_that_jumps_ends_a_rest(project: Path, off: timedelta) -> None:
    looks = Looks(project, clock := SimulatedClock(START))
    looks.wake()
    clock.set(START + off)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fieldcast.pipeline.live.pending.run_pending", lambda *_, **__: [])
        looks.wake()
    assert looks.taken == 2


def test_a_cycle_that_waits_for_frames_is_looked_at_each_time(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveObservations, "frames", lambda self, times: {})
    looks = Looks(project, clock := SimulatedClock(START))
    for _ in range(3):
        assert looks.wake() == [Result.NO_DATA_YET]
        clock.sleep(60)
    assert looks.taken == 3


def test_a_look_that_ends_within_a_cycle_leaves_no_rest(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(project, clock := SimulatedClock(START))
    looks.wake()
    clock.sleep(300)
    monkeypatch.setenv(FAILPOINT, "claimed:raise")
    with pytest.raises(RuntimeError, match="failpoint claimed"):
        looks.wake()
    monkeypatch.delenv(FAILPOINT)
    assert looks.wake() == [Result.DONE]
    assert looks.taken == 3


@pytest.mark.parametrize("damage", [b"", b"no database"])
def test_a_ledger_that_cannot_be_read_is_met_by_a_look(project: Path, damage: bytes) -> None:
    looks = Looks(project, SimulatedClock(START))
    looks.wake()
    (looks.folder / LEDGER).write_bytes(damage)
    with pytest.raises(DamagedError) if damage else nullcontext():
        looks.wake()
    assert looks.taken == 2


@pytest.mark.slow
def test_nothing_heavy_is_imported_where_nothing_is_due(project: Path) -> None:
    """What a waking imports is what it costs: 0.2 s of a processor without these, 1.6 s with them."""
    command = [sys.executable, "-c", LOADED, "cycle"]
    looks = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() for _ in range(3)]
    assert {"numpy", "xarray", "zarr", "fieldcast.models"} <= set(json.loads(looks[0][-1]))
    nothing = [lines for lines in looks if lines[0] == "nothing is due"]
    assert nothing  # of three at most one is the first, and one at a full five minutes
    assert all(json.loads(lines[-1]) == [] for lines in nothing)
