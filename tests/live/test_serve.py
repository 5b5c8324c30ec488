"""The resident form: wakes by cron, survives errors, stops cleanly."""

import json
import logging
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from fieldcast.pipeline.config import Schedule
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live import scheduler
from fieldcast.pipeline.live.archive.ledger import Ledger
from fieldcast.pipeline.live.archive.publish import LEDGER, open_forecasts
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.monitoring.logs import set_up
from fieldcast.pipeline.live.outcomes import Result
from fieldcast.pipeline.live.schedule import cron_trigger
from fieldcast.pipeline.live.scheduler import Server, run_until_complete
from tests.conftest import merged
from tests.live.clocks import SimulatedClock
from tests.live.contexts import PARAMS, START, minutes, params, write_reference

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def project(tmp_path: Path, tracker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with a checkpoint, parameters and an empty tracker, as working directory."""
    write_reference(tmp_path / "checkpoint")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged(PARAMS, {"live": {"model": "./checkpoint"}})))
    (tmp_path / "mlflow.db").write_bytes(tracker.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_wakeup_runs_what_is_due_and_reports_it(project: Path) -> None:
    clock = SimulatedClock(START)
    server = Server(params(), project / "live", clock)
    for _ in range(2):
        assert [it.result for it in server.tick()] == [Result.DONE]
        clock.sleep(300)
    assert open_forecasts(project / "live").sizes["init_time"] == 2
    for name in ("status.html", "metrics.prom", "latest.json"):
        assert (project / "live" / name).stat().st_size > 100
    with Ledger(project / "live" / LEDGER, read_only=True) as ledger:
        assert ledger.pending() == []  # the tracker has them


def test_an_error_does_not_end_the_service(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = SimulatedClock(START)
    server = Server(params({"model": "nowhere/else"}), project / "live", clock)
    assert server.tick() == []
    assert "live.model is 'nowhere/else'" in caplog.text
    assert Server(params(), project / "live", clock).tick()[0].result is Result.DONE


def test_a_clock_that_jumps_is_believed_at_the_second_look(project: Path) -> None:
    clock = SimulatedClock(START)
    server = Server(params({"backfill_hours": 1}), project / "live", clock)
    server.tick()
    clock.set(START + timedelta(days=2))
    assert server.tick() == []
    with Ledger(project / "live" / LEDGER, read_only=True) as ledger:
        assert ledger.events()[-1]["event"] == "clock_jump"
        assert len(ledger.cycles()) == 1  # no row was skipped for a clock that may be wrong
    clock.set(START + minutes(5))
    assert server.tick() == []
    clock.sleep(60)
    assert [it.result for it in server.tick()] == [Result.DONE]


@pytest.mark.parametrize(("level", "shown"), [(logging.INFO, ["cycle done"]), (logging.WARNING, [])])
def test_messages_of_the_project_are_json_lines_from_a_level_on(
    level: int, shown: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, before in (("", logging.WARNING), ("fieldcast", logging.NOTSET)):
        monkeypatch.setattr(logging.getLogger(name), "level", before)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    set_up(level)
    scheduler.log.info("cycle done")
    logging.getLogger("library").info("something else")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == shown


def test_waiting_ends_at_the_deadline(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimulatedClock(START)
    looks = []

    def work(context: LiveContext) -> list[object]:
        from fieldcast.pipeline.live import cycle
        from tests.live.test_cycle import hide

        hide(context, START - minutes(5))
        looks.append(clock.now())
        return cycle.run(context)  # type: ignore[return-value]

    outcomes = run_until_complete(params({"late_data": {"deadline_minutes": 1}}), project / "live", clock, work)  # type: ignore[arg-type]
    assert [it.quality for it in outcomes] == ["filled"]
    assert len(looks) == 7  # every ten seconds for one minute


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"cron": "every minute"}, "live.schedule.cron is 'every minute'"),
        ({"cron": "61 * * * *"}, "live.schedule.cron is '61"),
        ({"time_zone": "Mars/Olympus"}, "live.schedule.time_zone is 'Mars/Olympus'"),
    ],
)
def test_a_wrong_schedule_is_refused_before_it_starts(schedule: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("*", r"\*")):
        cron_trigger(Schedule(**schedule))


def test_the_time_zone_is_that_of_the_cron_expression() -> None:
    trigger = cron_trigger(Schedule(cron="0 6 * * *", time_zone="Europe/Vienna"))
    summer, winter = datetime(2024, 7, 1, tzinfo=UTC), datetime(2024, 12, 1, tzinfo=UTC)
    assert [trigger.get_next_fire_time(None, day).astimezone(UTC).hour for day in (summer, winter)] == [4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_within_ten_seconds(project: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [Path(sys.executable).with_name("fieldcast"), "serve", "--folder", "live"],
        cwd=project,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not (project / "live" / "latest.json").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        before = time.monotonic()
        process.send_signal(number)
        written = process.communicate(timeout=20)[1]
        assert process.returncode == 128 + number
        assert time.monotonic() - before < 10
    finally:
        process.kill()
        process.communicate()
    lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    assert any(line["message"].startswith("serving") for line in lines)
    assert open_forecasts(project / "live").sizes["init_time"] >= 1
    assert not list((project / "live" / "forecasts").glob(".*"))
