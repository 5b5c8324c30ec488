"""The replay: the files that it puts into the feed, the schedule under its faults, and checks that find errors."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger, State
from fieldcast.pipeline.live.archive.publish import CATALOGUE, FORECASTS, path_of
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.sources import open_source
from tests.conftest import ROOT
from tests.live.clocks import FixedClock
from tests.live.feeds import at, frame, write_bom
from tests.live.replay.__main__ import main
from tests.live.replay.config import ReplayOptions, policy
from tests.live.replay.faults import OUTAGE, SHARES, Feed, alter, plan_feed
from tests.live.replay.run import ReplayRun, replay, set_up
from tests.live.replay.schedulers import FAILPOINTS
from tests.sources import archives

STEP, DEADLINE = timedelta(minutes=10), timedelta(minutes=15)
FRAMES = 24


@pytest.fixture(scope="module")
def radar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an archive of radar files, ten minutes apart."""
    folder = tmp_path_factory.mktemp("archive")
    for number in range(FRAMES):
        write_bom(folder / "day", 10 * number, frame(number, 12, 14))
    return folder


@pytest.fixture(scope="module")
def options(radar: Path, tmp_path_factory: pytest.TempPathFactory) -> ReplayOptions:
    into = tmp_path_factory.mktemp("replay") / "new"
    return ReplayOptions(radar, "bom", into, "persistence", horizon=2, seed=4, machine_faults=False)


@pytest.fixture(scope="module")
def played(options: ReplayOptions) -> ReplayRun:
    """Return a replay that has been run; tests work on copies of its live folder."""
    shutil.rmtree(options.into, ignore_errors=True)
    run = ReplayRun(set_up(options), options.into / "live")
    run.run()
    return run


@pytest.fixture
def copied(played: ReplayRun, tmp_path: Path) -> ReplayRun:
    shutil.copytree(played.folder, tmp_path / "live")
    copy = ReplayRun(played.config, tmp_path / "live")
    copy.expected = list(played.expected)
    return copy


def files(folder: Path) -> dict[datetime, Path]:
    return {at(10 * number): path for number, path in enumerate(sorted(folder.rglob("*.nc")))}


def faults(run: ReplayRun) -> dict[str, list[str]]:
    return {name: lines for name, lines in run.examine().faults().items() if lines}


def test_every_fault_has_some_frames_and_none_has_two(radar: Path) -> None:
    plan = plan_feed(files(radar), radar, STEP, DEADLINE, clean=3, outage=4, seed=7)
    assert set(plan.faults) == {OUTAGE, *SHARES}
    faulty = [time for times in plan.faults.values() for time in times]
    assert len(faulty) == len(set(faulty)) == 4 + len(SHARES)
    assert not set(faulty) & set(sorted(files(radar))[:3])
    lost = {time for kind in (OUTAGE, "never came", "cut for ever") for time in plan.faults[kind]}
    assert set(plan.whole) == set(files(radar)) - lost
    late = {kind: plan.whole[times[0]] - times[0] for kind, times in plan.faults.items() if times[0] in plan.whole}
    assert late["after the deadline"] > DEADLINE > late["just before the deadline"] > STEP
    assert DEADLINE > late["out of order"] > 1.3 * STEP
    assert plan == plan_feed(files(radar), radar, STEP, DEADLINE, clean=3, outage=4, seed=7)
    assert plan.arrivals != plan_feed(files(radar), radar, STEP, DEADLINE, clean=3, outage=4, seed=8).arrivals


def test_without_a_seed_every_frame_comes_soon(radar: Path) -> None:
    plan = plan_feed(files(radar), radar, STEP, DEADLINE, clean=3, outage=4, seed=None)
    assert not plan.faults
    assert len(plan.arrivals) == FRAMES
    assert all(timedelta(0) < plan.whole[time] - time < STEP for time in files(radar))


def test_a_feed_holds_what_has_arrived(radar: Path, tmp_path: Path) -> None:
    plan = plan_feed(files(radar), radar, STEP, DEADLINE, clean=3, outage=4, seed=7)
    feed = Feed(tmp_path / "feed", plan.arrivals)
    assert feed.deliver(at(-1)) == 0
    moment, there = at(-1), 0
    while there < len(plan.arrivals):
        moment += timedelta(minutes=1)
        there += feed.deliver(moment)
        for time, path in files(radar).items():
            here = tmp_path / "feed" / path.relative_to(radar)
            whole = here.is_file() and here.read_bytes() == path.read_bytes()
            assert whole == plan.present([time], moment)[0], (time, moment)
    again = files(radar)[plan.faults["twice"][0]]
    assert (tmp_path / "feed" / "again" / again.name).read_bytes() == again.read_bytes()
    assert len(list((tmp_path / "feed" / "other").iterdir())) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"feed"}


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("bom", lambda folder: archives.write_bom(folder / "a.nc", "2024-06-01", frame(1, 16, 18))),
        ("knmi", lambda folder: archives.write_knmi(folder / "a.h5", "2024-06-01", frame(1, 16, 18).astype(np.uint16))),
        (
            "fmi",
            lambda folder: archives.write_fmi(
                folder / "a.pgm.gz", "202406010000", np.arange(6400, dtype=np.uint8).reshape(80, 80)
            ),
        ),
    ],
)
def test_an_altered_file_has_another_field_at_the_same_time(
    kind: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path)
    options = RadarOptions.model_validate({"path": str(path), "format": kind})

    def read() -> tuple[np.ndarray, np.ndarray]:
        part = open_source(options).segments()[0]
        return part.times, part.read(np.array([0]), slice(None), slice(None))["rain_rate"].values

    (time, field), _ = read(), alter(path)
    other_time, other = read()
    assert time == other_time
    assert 0.1 < np.mean((field != other) & np.isfinite(other)) < 0.5


def test_the_schedule_under_a_bad_feed(played: ReplayRun) -> None:
    result = played.examine()
    assert not {name: lines for name, lines in result.faults().items() if lines}
    assert result.due == FRAMES - 2 == sum(result.states.values())
    assert result.states["published"] == sum(it.quality == "good" for it in played.expected)
    assert result.states["degraded"] > 5
    assert result.states["skipped"] == 2  # four frames in a row are missing, three make a history
    assert result.verified == result.states["published"] + result.states["degraded"]
    frames = played.config.plan.faults
    refused = len(frames["contradicted"]) + len(frames["cut for ever"])
    assert refused <= result.events["refused"] <= refused + len(frames["cut, then whole"])
    assert (played.folder / "status.html").stat().st_size > 10_000


def test_a_rerun_and_an_undisturbed_run_change_no_byte(copied: ReplayRun) -> None:
    assert copied.rerun() == []
    assert copied.compare_undisturbed() == []
    assert copied.fault_log.surprises == []


def test_what_is_expected_follows_the_policy(played: ReplayRun) -> None:
    rules = played.params.live.late_data
    assert [
        policy(it, rules) for it in ([True] * 3, [False, True, True], [False, False, True], [True, True, False])
    ] == [
        "good",
        "filled",
        "fallback_persistence",
        "fallback_persistence",
    ]
    assert policy([False] * 3, rules) == ""
    assert policy([True, True, False], rules.model_copy(update={"fallback": "none"})) == ""


def remove_row(run: ReplayRun, init_time: datetime) -> None:
    with sqlite3.connect(run.folder / LEDGER) as ledger:
        ledger.execute("DELETE FROM cycles WHERE init_time = ?", [iso(init_time)])


def remove_chunk(run: ReplayRun, init_time: datetime) -> None:
    next(it for it in path_of(run.folder, init_time).rglob("c/**/*") if it.is_file()).unlink()


def flip(run: ReplayRun, init_time: datetime) -> None:
    chunk = next(it for it in path_of(run.folder, init_time).rglob("rain_rate/c/**/*") if it.is_file())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)


def copy_forecast(run: ReplayRun, init_time: datetime) -> None:
    shutil.copytree(path_of(run.folder, init_time), path_of(run.folder, init_time, 1))


def leave_partial(run: ReplayRun, init_time: datetime) -> None:
    (run.folder / FORECASTS / f".{path_of(run.folder, init_time).name}.7.partial").mkdir()


def forget_the_newest(run: ReplayRun, _: datetime) -> None:
    catalogue = json.loads((run.folder / CATALOGUE).read_text())
    catalogue["forecasts"].pop()
    (run.folder / CATALOGUE).write_text(json.dumps(catalogue))


def publish_again(run: ReplayRun, init_time: datetime) -> None:
    context = LiveContext(run.params, run.folder, FixedClock(run.ending[-1]))
    cycle.run(context, [init_time], supersede=True, compute=lambda it: cycle.forecast(context, it) + 1)


def publish_wrongly(run: ReplayRun, init_time: datetime) -> None:
    remove_row(run, init_time)
    shutil.rmtree(path_of(run.folder, init_time))
    context = LiveContext(run.params, run.folder, FixedClock(run.ending[-1]))
    cycle.run(context, [init_time], compute=lambda it: cycle.forecast(context, it) + 1)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (remove_row, {"missed cycles", "partial, damaged or wrong forecasts"}),
        (remove_chunk, {"partial, damaged or wrong forecasts"}),
        (flip, {"partial, damaged or wrong forecasts"}),
        (copy_forecast, {"duplicate cycles", "partial, damaged or wrong forecasts"}),
        (leave_partial, {"partial, damaged or wrong forecasts"}),
        (forget_the_newest, {"partial, damaged or wrong forecasts"}),
        (publish_wrongly, {"partial, damaged or wrong forecasts", "duplicate cycles"}),
    ],
)
def test_a_planted_fault_is_found(
    copied: ReplayRun, plant: Callable[[ReplayRun, datetime], None], found: set[str]
) -> None:
    plant(copied, next(it.init_time for it in copied.expected if it.quality == "good"))
    assert found <= set(faults(copied)) <= {*found, "cycles with a wrong quality flag"}


def test_a_second_revision_is_a_duplicate(copied: ReplayRun) -> None:
    late = copied.config.plan.faults["after the deadline"][0]
    publish_again(copied, late)
    assert {"duplicate cycles", "cycles with a wrong quality flag"} <= set(faults(copied))


def test_a_flag_that_hides_missing_frames_is_found(copied: ReplayRun) -> None:
    number = next(i for i, it in enumerate(copied.expected) if it.quality == "good")
    hidden = replace(copied.expected[number], present=[True, True, False], quality="fallback_persistence")
    copied.expected[number] = hidden
    assert set(faults(copied)) == {"cycles with a wrong quality flag", "partial, damaged or wrong forecasts"}


def test_what_was_not_verified_is_found(copied: ReplayRun) -> None:
    with sqlite3.connect(copied.folder / LEDGER) as ledger:
        ledger.execute("DELETE FROM verifications WHERE init_time = ?", [iso(copied.expected[0].init_time)])
    assert set(faults(copied)) == {"forecasts not verified, or not in time"}


def test_a_change_by_a_rerun_is_found(copied: ReplayRun, monkeypatch: pytest.MonkeyPatch) -> None:
    late = copied.config.plan.faults["after the deadline"][0]
    revise = lambda context, init_times: real(context, [late], supersede=True)  # noqa: E731
    real = cycle.run
    monkeypatch.setattr(
        cycle, "run", lambda context, times=None: real(context) if times is None else revise(context, times)
    )
    lines = copied.rerun()
    assert f"{FORECASTS}/{path_of(Path(), late, 1).name}/manifest.json" in lines
    assert CATALOGUE in lines


def test_schedulers_that_do_not_ask_the_ledger_fail(
    played: ReplayRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A naive pair makes every cycle again at each wakeup: the replay must report it."""
    monkeypatch.setattr("fieldcast.pipeline.live.context.OPEN", tuple(State))
    monkeypatch.setattr(Ledger, "cycle", lambda *_: None)
    options = replace(played.config.options, into=tmp_path / "naive", cycles=2, feed_faults=False)
    run = ReplayRun(set_up(options), tmp_path / "naive" / "live")
    run.run()
    assert "surprises" in faults(run)
    assert "missed cycles" in faults(run)


def test_the_command(radar: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    arguments = [str(radar), "--format", "bom", "--into", str(tmp_path / "new"), "--horizon", "2"]
    result = CliRunner().invoke(app, [*arguments, "--cycles", "3", "--no-faults", "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert (content["cycles"], content["published"], content["degraded"], content["verified"]) == (3, 3, 0, 3)
    assert not any(content["faults"].values())
    assert json.loads((tmp_path / "new" / "replay.json").read_text())["cycles"] == 3
    assert Path(content["page"]).is_file()


def test_a_folder_of_something_else_stays(radar: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="not empty and no earlier replay"):
        replay(ReplayOptions(radar, "bom", tmp_path))
    assert (tmp_path / "mine").read_text() == "mine"


def test_too_few_frames_are_refused(radar: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"24 frames, expected history \+ horizon = 33 or more"):
        replay(ReplayOptions(radar, "bom", tmp_path / "new", "persistence", horizon=30))


def test_all_failpoints_are_replayed() -> None:
    found = set()
    for path in (ROOT / "pipeline" / "live").rglob("*.py"):
        found |= set(re.findall(r'failpoint\("([^"]+)"\)', path.read_text()))
    # no forecast becomes so old in a replay that it is deleted, and a replay tells nobody, as test_notices does
    assert found - {"trashed", "notice_sent"} == set(FAILPOINTS)
