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
from fieldcast.pipeline.errors import BusyError, InputError
from fieldcast.pipeline.live import scheduler, waking
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger
from fieldcast.pipeline.live.archive.publish import open_forecasts
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.monitoring.logs import set_up
from fieldcast.pipeline.live.outcomes import Outcome, Result
from fieldcast.pipeline.live.pending import run_pending
from fieldcast.pipeline.live.schedule import cron_trigger
from fieldcast.pipeline.live.scheduler import WAKEUP, Server
from tests.campaign import cases
from tests.conftest import merged
from tests.live.clocks import SimulatedClock
from tests.live.contexts import PARAMS, START, minutes, params, write_reference


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


def test_a_clock_that_jumps_decides_nothing_until_it_is_right(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = SimulatedClock(START)
    server = Server(params({"backfill_hours": 1}), project / "live", clock)
    server.tick()
    before = (project / "live" / "metrics.prom").read_bytes()
    clock.set(START + timedelta(days=2))
    assert server.tick() == []
    assert "the clock shows 2024-06-03T06:00:00Z, 2 days, 0:00:00 after the last cycle's look" in caplog.text
    assert (project / "live" / "metrics.prom").read_bytes() != before
    with Ledger(project / "live" / LEDGER, read_only=True) as ledger:
        assert ledger.events()[-1]["event"] == "clock_jump"
        assert len(ledger.cycles()) == 1  # no row was skipped for a clock that may be wrong
    clock.set(START + minutes(5))
    assert [it.result for it in server.tick()] == [Result.DONE]


def test_a_suspend_of_ten_minutes_costs_no_cycle(project: Path) -> None:
    clock = SimulatedClock(START)
    server = Server(params({"schedule": {"cron": "0 */6 * * *"}}), project / "live", clock)
    server.tick()
    clock.set(START + minutes(10))  # of which the machine has no seconds
    assert [it.result for it in server.tick()] == [Result.DONE] * 2


def test_a_service_whose_clock_is_set_back_wakes_by_the_new_time(project: Path) -> None:
    now = datetime.now(UTC)
    clock = SimulatedClock(now)
    server = Server(params({"schedule": {"cron": "0 */6 * * *"}}), project / "live", clock)
    server.scheduler.add_job(server.tick, server.trigger, id=WAKEUP, next_run_time=now + timedelta(hours=30))
    server.scheduler.start(paused=True)
    server.watch()
    waking = [job.next_run_time for job in server.scheduler.get_jobs()]
    server.scheduler.shutdown()
    assert len(waking) == 2  # at once, and at the next full six hours
    assert min(waking) <= now + minutes(1)
    assert now < max(waking) <= now + timedelta(hours=6)


def test_a_wakeup_in_doubt_is_tried_again_soon(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object, **__: object) -> None:
        raise BusyError("another process is at work")

    monkeypatch.setattr(waking, "wake", busy)
    server = Server(params({"schedule": {"cron": "0 */6 * * *"}}), project / "live")
    server.scheduler.start(paused=True)
    server.tick()
    server.tick()
    (job,) = server.scheduler.get_jobs()
    server.scheduler.shutdown()
    assert timedelta(0) < job.next_run_time - datetime.now(UTC) <= timedelta(minutes=1)


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

    def work(context: LiveContext) -> list[Outcome]:
        from fieldcast.pipeline.live import cycle
        from tests.live.test_cycle import hide

        hide(context, START - minutes(5))
        looks.append(clock.now())
        return cycle.run(context)

    values = params({"late_data": {"deadline_minutes": 1}})
    outcomes = waking.until_complete(lambda: run_pending(values, project / "live", clock, work), clock)
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
@pytest.mark.parametrize("number", cases([signal.SIGTERM, signal.SIGINT], [signal.SIGTERM]))
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
