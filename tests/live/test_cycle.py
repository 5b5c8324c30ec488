"""Cycles as schedulers run them: once, whole, flagged, verified, and equal to the hindcast."""

import errno
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldcast.models.advection.forecast import forecast as advection
from fieldcast.pipeline import config
from fieldcast.pipeline.config.sources import StormsOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.datasets.times import to_numpy
from fieldcast.pipeline.errors import BusyError, DamagedError, InputError
from fieldcast.pipeline.forecast import forecast as hindcast_all
from fieldcast.pipeline.ingest import ingest
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive import publish
from fieldcast.pipeline.live.archive.durable import FAILPOINT
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger, State
from fieldcast.pipeline.live.archive.publish import open_forecasts, path_of
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.outcomes import ExitCode, Outcome, Result, worst
from tests.campaign import cases
from tests.live.clocks import SimulatedClock
from tests.live.contexts import SOURCE, START, live_context, minutes, params, write_learned, write_reference


def rows(context: LiveContext) -> list[Any]:
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        return ledger.cycles()


def events(context: LiveContext) -> list[str]:
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        return [event["event"] for event in ledger.events()]


def hide(context: LiveContext, *hidden: datetime) -> None:
    """Let the feed lack some frames, as an archive does whose files have not come."""
    whole = context.observations

    class Gappy:
        def frames(self, times: list[datetime]) -> dict[datetime, Any]:
            return {time: frame for time, frame in whole.frames(times).items() if time not in hidden}

        def read(self, times: list[datetime], names: list[str]) -> np.ndarray:
            values = whole.read(times, names)
            for i, time in enumerate(times):
                if time in hidden:
                    values[i] = np.nan
            return values

        def __getattr__(self, name: str) -> Any:
            return getattr(whole, name)

    context.observations = Gappy()  # type: ignore[assignment]


def test_a_cycle_is_published_once_and_again_changes_nothing(tmp_path: Path) -> None:
    context = live_context(tmp_path)
    first = cycle.run(context)
    assert [outcome.result for outcome in first] == [Result.DONE]
    digest = directory_digest(context.folder / "forecasts")
    assert cycle.run(context) == []  # nothing is due
    again = cycle.run(context, [START])
    assert [outcome.result for outcome in again] == [Result.ALREADY_DONE]
    assert again[0].exit_code() == 0
    assert again[0].exit_code(detailed=True) == ExitCode.ALREADY_DONE
    assert directory_digest(context.folder / "forecasts") == digest


def test_what_is_published_is_complete_and_readable(tmp_path: Path) -> None:
    context = live_context(tmp_path)
    for _ in range(3):
        cycle.run(context)
        context.clock.sleep(300)
    opened = open_forecasts(context.folder)
    assert dict(opened.sizes) == {"init_time": 3, "lead_time": 4, "y": 16, "x": 16}
    assert opened["rain_rate"].attrs["units"] == "mm h-1"
    assert list(opened["quality_flag"].values) == ["good"] * 3
    assert opened["init_time"].values[0] == to_numpy(START)
    assert np.isfinite(opened["rain_rate"].values).all()
    assert (opened["valid_time"] == opened["init_time"] + opened["lead_time"]).all()


def test_a_missing_frame_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    context = live_context(tmp_path)
    hide(context, START)
    waiting = cycle.run(context)[0]
    assert waiting.result is Result.NO_DATA_YET
    assert waiting.exit_code() == ExitCode.TRY_AGAIN
    assert waiting.missing == [iso(START)]
    assert rows(context)[0].state is State.DUE
    context.clock.sleep(120)
    late = live_context(tmp_path, context.clock.now())  # the frame has come
    assert cycle.run(late)[0].result is Result.DONE
    assert rows(late)[0].quality == "good"


@pytest.mark.parametrize(
    ("back", "changes", "result", "quality"),
    [
        ([1], {}, Result.DEGRADED, "filled"),
        ([1, 2], {}, Result.DEGRADED, "fallback_persistence"),
        ([0], {}, Result.DEGRADED, "fallback_persistence"),  # the newest is never filled
        ([0], {"fallback": "advection"}, Result.DEGRADED, "fallback_advection"),
        ([1, 2], {"fallback": "none"}, Result.SKIPPED, ""),
        ([0, 1, 2], {}, Result.SKIPPED, ""),
        ([1, 2], {"max_missing_frames": 2}, Result.DEGRADED, "filled"),
    ],
)
def test_after_the_deadline_the_policy_decides(
    tmp_path: Path, back: list[int], changes: dict[str, Any], result: Result, quality: str
) -> None:
    context = live_context(tmp_path, START, {"late_data": changes})
    cycle.run(live_context(tmp_path, START - minutes(5), {"late_data": changes}))  # so that a grid is known
    hide(context, *(START - minutes(5 * i) for i in back))
    cycle.run(context)
    context.clock.sleep(600)
    outcome = next(one for one in cycle.run(context) if one.init_time == START)
    assert outcome.result is result
    row = next(one for one in rows(context) if one.init_time == START)
    assert (row.quality if result is Result.DEGRADED else "") == quality
    assert row.n_input_missing == len(back)
    assert str(len(back)) in row.reason
    if result is Result.DEGRADED:
        published = open_forecasts(context.folder, START, START)
        assert published["quality_flag"].item() == quality
        assert published["n_input_missing"].item() == len(back)


def test_a_fallback_starts_from_the_last_frame_that_came(tmp_path: Path) -> None:
    """Without the newest frame advection goes on from the one before context, a step longer."""
    changes = {"late_data": {"fallback": "advection", "deadline_minutes": 0}}
    write_reference(tmp_path / "checkpoint", "advection")
    before = live_context(tmp_path, START - minutes(5), changes)
    cycle.run(before)
    context = live_context(tmp_path, START, changes)
    hide(context, START)
    assert cycle.run(context)[0].quality == "fallback_advection"
    history = before.observations.read(context.schedule.history_times(START)[:2], ["rain_rate"])
    expected = advection(history[None], 5, **context.model.fallback_options)[0, 1:, 0]
    issued = open_forecasts(context.folder, START, START)["rain_rate"].values[0]
    np.testing.assert_array_equal(issued, np.clip(expected, 0, None))


def test_a_restart_catches_up_and_skips_what_is_too_old(tmp_path: Path) -> None:
    context = live_context(tmp_path, START, {"backfill_hours": 0.5})
    cycle.run(context)
    context.clock.sleep(3600)
    outcomes = cycle.run(context)
    assert [outcome.result for outcome in outcomes] == [Result.DONE] * 7  # 06:30 to 07:00
    states = [row.state for row in rows(context)]
    assert states == [State.PUBLISHED] + [State.SKIPPED] * 5 + [State.PUBLISHED] * 7
    assert "live.backfill_hours" in rows(context)[1].reason


def test_a_clock_that_goes_back_plans_nothing(tmp_path: Path) -> None:
    context = live_context(tmp_path)
    cycle.run(context)
    assert isinstance(context.clock, SimulatedClock)
    context.clock.set(START - timedelta(hours=1))
    with pytest.raises(BusyError, match="1:00:00 earlier than the last cycle's look"):
        cycle.run(context)
    assert len(rows(context)) == 1


def test_an_init_time_off_the_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"06:02:00 is no init time.*06:00:00"):
        cycle.run(live_context(tmp_path), [START + minutes(2)])


def test_every_minutes_thins_init_times(tmp_path: Path) -> None:
    context = live_context(tmp_path, START + minutes(20), {"every_minutes": 15})
    assert [one.init_time for one in cycle.run(context)] == [START + minutes(15)]
    with pytest.raises(InputError, match="expected a multiple of the model's 5 minutes"):
        live_context(tmp_path, START, {"every_minutes": 7})


def test_a_model_that_fails_is_tried_again_then_failed(tmp_path: Path) -> None:
    context = live_context(tmp_path)

    def broken(_: cycle.Prepared) -> np.ndarray:
        raise RuntimeError("no such luck")

    codes = [cycle.run(context, compute=broken)[0] for _ in range(3)]
    assert [code.exit_code() for code in codes] == [ExitCode.BUG] * 3
    assert rows(context)[0].state is State.FAILED
    assert "no such luck" in rows(context)[0].reason
    assert cycle.run(context) == []
    assert cycle.run(context, [START])[0].result is Result.DONE  # asked for by name, it is tried again


def test_values_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    context = live_context(tmp_path)

    def holes(prepared: cycle.Prepared) -> np.ndarray:
        fields = cycle.forecast(context, prepared)
        fields[0, 1, 0, 3, 5] = np.nan
        return fields

    outcome = cycle.run(context, compute=holes)[0]
    assert outcome.result is Result.FAILED
    assert "1 values that are not finite" in outcome.reason
    assert not path_of(context.folder, START).exists()


def test_a_full_disk_is_not_the_cycles_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = live_context(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "forecasts")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "stage", full)
        outcomes = [cycle.run(context)[0] for _ in range(5)]
    assert {outcome.exit_code() for outcome in outcomes} == {ExitCode.CANNOT_WRITE}
    assert rows(context)[0].state is State.DUE  # more often than max_attempts
    assert cycle.run(context)[0].result is Result.DONE


def test_too_little_space_says_how_much_to_free(tmp_path: Path) -> None:
    context = live_context(tmp_path, START, {"reserve_megabytes": 1e9})
    outcome = cycle.run(context)[0]
    assert outcome.exit_code() == ExitCode.CANNOT_WRITE
    assert "free" in outcome.reason
    assert "live.retention.days" in outcome.reason


def test_a_damaged_frame_is_read_again_from_the_feed(tmp_path: Path) -> None:
    context = live_context(tmp_path)
    cycle.run(context)
    frame = context.observations.frames([START])[START]
    content = bytearray(frame.path.read_bytes())
    content[len(content) // 2] ^= 4
    frame.path.write_bytes(content)
    context.clock.sleep(300)
    outcome = cycle.run(context)[0]
    assert outcome.exit_code() == ExitCode.DAMAGED
    assert frame.path.name in outcome.reason
    assert cycle.run(context)[0].result is Result.DONE


@pytest.mark.parametrize("harm", ["gone", "flipped"])
def test_a_lost_or_damaged_forecast_is_issued_anew_only_when_asked(tmp_path: Path, harm: str) -> None:
    context = live_context(tmp_path)
    cycle.run(context)
    path = path_of(context.folder, START)
    if harm == "gone":
        shutil.rmtree(path)
        with pytest.raises(DamagedError, match=r"--supersede"):
            cycle.run(context, [START])
    else:
        chunk = path / "rain_rate" / "c" / "0" / "0" / "0" / "0"
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
        with pytest.raises(DamagedError, match=r"--supersede"):
            open_forecasts(context.folder)
        with pytest.raises(DamagedError, match=r"--supersede"):
            cycle.run(context, [START])
    outcome = cycle.run(context, [START], supersede=True)[0]
    assert outcome.result is Result.DONE
    assert outcome.path.endswith(".r1.zarr")
    assert open_forecasts(context.folder)["rain_rate"].shape == (1, 4, 16, 16)
    assert cycle.run(context, [START], supersede=True)[0].result is Result.ALREADY_DONE


def test_another_forecast_needs_supersede_and_becomes_a_revision(tmp_path: Path) -> None:
    context = live_context(tmp_path)
    cycle.run(context)
    write_reference(tmp_path / "other", "advection")
    other = live_context(tmp_path, START, {"model": "other"})
    refused = cycle.run(other, [START])[0]
    assert refused.exit_code() == ExitCode.CANNOT_WRITE
    assert "--supersede" in refused.reason
    outcome = cycle.run(other, [START], supersede=True)[0]
    assert outcome.result is Result.DONE
    assert outcome.path.endswith(".r1.zarr")
    assert open_forecasts(context.folder)["model"].item() == "advection"
    assert [row.state for row in rows(context)] == [State.SUPERSEDED, State.PUBLISHED]
    assert path_of(context.folder, START).exists()  # what was issued stays on record


def test_a_model_of_another_grid_is_refused(tmp_path: Path) -> None:
    cycle.run(live_context(tmp_path))
    write_reference(tmp_path / "other", source={**SOURCE, "cells": 20})
    with pytest.raises(InputError, match=r"16.*expected 20|20.*expected 16"):
        cycle.run(live_context(tmp_path, START + minutes(5), {"model": "other"}))


@pytest.mark.parametrize("held", [False, True], ids=["at the start", "in a process that runs"])
@pytest.mark.parametrize(
    ("name", "flipped"),
    cases(
        [("model.safetensors", True), ("config.json", True), ("manifest.json", True), ("config.json", False)],
        [("model.safetensors", True), ("config.json", False)],
    ),
)
def test_a_damaged_checkpoint_leaves_cycles_due_until_it_is_mended(
    tmp_path: Path, name: str, flipped: bool, held: bool
) -> None:
    write_learned(tmp_path / "checkpoint", "recurrent", {"hidden": [4]})
    context = live_context(tmp_path)
    path = tmp_path / "checkpoint" / name
    whole = path.read_bytes()
    if flipped:
        path.write_bytes(whole[:99] + bytes([whole[99] ^ 1]) + whole[100:])
    else:
        path.unlink()
    for _ in range(4):  # one more than `live.max_attempts`
        code = outcome_code(context if held else None, tmp_path, context.clock)
        assert code == ExitCode.DAMAGED
        context.clock.sleep(300)
    path.write_bytes(whole)
    later = live_context(tmp_path, context.clock.now())
    done = cycle.run(later)
    assert {it.quality for it in done} == {"good"}
    assert [it.init_time for it in done] == [START + minutes(5) * i for i in range(0 if held else 4, 5)]


def outcome_code(context: LiveContext | None, root: Path, clock: Any) -> ExitCode:
    """Return the exit code of a run, in a process of its own unless it has a context."""
    try:
        return worst(cycle.run(context or LiveContext(params(), root / "live", clock, root)))
    except DamagedError as error:
        return ExitCode(error.exit_code)


@pytest.mark.parametrize("failpoint", ["before_commit", "synced"])
def test_what_a_failed_cycle_leaves_behind_is_in_nobody_s_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failpoint: str
) -> None:
    context = live_context(tmp_path)
    monkeypatch.setenv(FAILPOINT, f"{failpoint}:eio")
    assert [it.result for it in cycle.run(context)] == [Result.FAILED]
    monkeypatch.delenv(FAILPOINT)
    cycle.run(context)
    assert [row.state for row in rows(context)] == [State.PUBLISHED]
    assert [path.name for path in (context.folder / "forecasts").iterdir()] == [path_of(context.folder, START).name]


def test_a_dry_run_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)  # where a database could be taken for a file of that name
    context = live_context(tmp_path)
    assert cycle.run(context, dry=True)[0].result is Result.DONE
    assert not context.folder.exists()
    assert list(here.iterdir()) == []
    cycle.run(context)
    digest = directory_digest(context.folder)
    assert cycle.run(context, dry=True) == []
    assert cycle.run(context, [START], dry=True)[0].result is Result.ALREADY_DONE
    context.clock.sleep(300)
    assert cycle.run(context, dry=True)[0].result is Result.DONE
    assert directory_digest(context.folder) == digest


def decided(outcomes: list[Outcome]) -> list[tuple[Any, ...]]:
    return [(it.init_time, it.result, it.reason, it.model, it.quality, it.missing, it.exit_code()) for it in outcomes]


@pytest.mark.parametrize(
    ("by_name", "back", "sleep"),
    [
        (False, [], 0),
        (False, [0], 120),
        (False, [0], 600),
        (False, [1], 600),
        (False, [0, 1, 2], 600),
        (False, [], 1500),  # longer than backfill_hours
        (True, [], 600),
        (True, [0], 120),
        (True, [0, 1, 2], 600),
    ],
)
def test_a_dry_run_decides_as_a_run_does(tmp_path: Path, by_name: bool, back: list[int], sleep: int) -> None:
    context = live_context(tmp_path, START - minutes(5), {"backfill_hours": 0.2})
    cycle.run(context)
    context.clock.sleep(300)
    hide(context, *(START - minutes(5 * i) for i in back))
    cycle.run(context)
    context.clock.sleep(sleep)
    init_times = [START, START - minutes(5)] if by_name else None
    dry = cycle.run(context, init_times, dry=True)
    assert decided(dry) == decided(cycle.run(context, init_times))


def test_a_dry_run_refuses_and_supersedes_as_a_run_does(tmp_path: Path) -> None:
    cycle.run(live_context(tmp_path))
    write_reference(tmp_path / "other", "advection")
    other = live_context(tmp_path, START, {"model": "other"})
    for supersede, result in ((False, Result.FAILED), (True, Result.DONE), (True, Result.ALREADY_DONE)):
        dry = cycle.run(other, [START], supersede=supersede, dry=True)
        assert dry[0].result is result
        assert decided(dry) == decided(cycle.run(other, [START], supersede=supersede))


def test_a_dry_run_makes_cycles_due_that_are_asked_for_by_name(tmp_path: Path) -> None:
    context = live_context(tmp_path)

    def broken(_: cycle.Prepared) -> np.ndarray:
        raise RuntimeError("no such luck")

    for _ in range(3):
        cycle.run(context, compute=broken)
    assert rows(context)[0].state is State.FAILED
    assert cycle.run(context, [START], dry=True)[0].result is Result.DONE


def test_each_forecast_is_verified_once_when_its_truth_is_in(tmp_path: Path) -> None:
    context = live_context(tmp_path)
    for _ in range(8):
        cycle.run(context)
        context.clock.sleep(300)
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        verified = ledger.verifications()
        sent = [content for _, content in ledger.pending()]
    assert [one.init_time for one in verified] == [START + minutes(5 * i) for i in range(4)]  # 20 minutes ahead
    assert verified[0].sums["rain_rate"]["forecast"] == verified[0].sums["rain_rate"]["persistence"]
    assert sum(content["kind"] == "scores" for content in sent) == 4
    assert sum(content["kind"] == "cycle" for content in sent) == 8


def test_drift_is_noticed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = live_context(tmp_path, START, {"drift": {"min_cycles": 2, "max_rmse_ratio": 0.9}})
    for _ in range(8):
        cycle.run(context)
        context.clock.sleep(300)
    assert events(context).count("drift") == 1
    assert "1.00 times that of persistence" in caplog.text


def test_retention_and_pruning_follow_the_clock(tmp_path: Path) -> None:
    context = live_context(tmp_path, START, {"retention": {"cycles": 2, "observations_hours": 0.5}})
    for _ in range(12):
        cycle.run(context)
        context.clock.sleep(300)
    assert open_forecasts(context.folder).sizes["init_time"] == 2
    assert len(context.observations.times(START - timedelta(days=1), context.clock.now())) < 13
    context.clock.sleep(86400)
    cycle.run(context, [context.schedule.floor(context.clock.now())])
    assert len(list((context.folder / "forecasts").iterdir())) <= 3


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("persistence", None),
        ("advection", None),
        ("recurrent", {"hidden": [8, 8], "patch": 2}),
        ("video_transformer", {"dim": 16, "heads": 2, "layers": 1, "patch": 4}),
    ],
)
def test_issued_equals_hindcast(tmp_path: Path, model: str, options: dict[str, Any] | None) -> None:
    """The forecast of a past init time is that of the stage `forecast`, bit for bit, among others in a block."""
    if options is None:
        write_reference(tmp_path / "checkpoint", model)
    else:
        write_learned(tmp_path / "checkpoint", model, options)
    context = live_context(tmp_path)
    cycle.run(context)
    period = (START - minutes(60)).replace(tzinfo=None), (START + minutes(60)).replace(tzinfo=None)
    source = StormsOptions(**{**SOURCE, "events": 24 * 155}).model_copy(update={"period": period})
    ingest(source, params().ingest, tmp_path / "observations.zarr", "synchronous")
    times = np.array([to_numpy(START - minutes(5)), to_numpy(START), to_numpy(START + minutes(5))])
    hindcast = tmp_path / "out.zarr"
    hindcast_all(tmp_path / "checkpoint", tmp_path / "observations.zarr", times, hindcast, config.Forecast())
    with store.open_forecasts(hindcast) as made:
        expected = made.sel(init_time=times[1]).load()
    issued = open_forecasts(context.folder)
    np.testing.assert_array_equal(issued["rain_rate"].values[0], expected["rain_rate"].values)
    assert np.isfinite(expected["rain_rate"].values).all()
    for name in ("lead_time", "y", "x"):
        np.testing.assert_array_equal(issued[name].values, expected[name].values)
