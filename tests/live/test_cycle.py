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
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive.ledger import Ledger, State
from fieldcast.pipeline.live.archive.publish import LEDGER, open_forecasts, path_of
from fieldcast.pipeline.live.clock import SimulatedClock, iso
from fieldcast.pipeline.live.context import Station
from fieldcast.pipeline.live.outcomes import ExitCode, Result
from fieldcast.pipeline.live.preview import preview
from tests.live.stations import SOURCE, START, minutes, params, station, write_learned, write_reference


def rows(it: Station) -> list[Any]:
    with Ledger(it.folder / LEDGER, read_only=True) as ledger:
        return ledger.cycles()


def events(it: Station) -> list[str]:
    with Ledger(it.folder / LEDGER, read_only=True) as ledger:
        return [event["event"] for event in ledger.events()]


def hide(it: Station, *hidden: datetime) -> None:
    """Let the feed lack some frames, as an archive does whose files have not come."""
    whole = it.observations

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

    it.observations = Gappy()  # type: ignore[assignment]


def test_a_cycle_is_published_once_and_again_changes_nothing(tmp_path: Path) -> None:
    it = station(tmp_path)
    first = cycle.run(it)
    assert [outcome.result for outcome in first] == [Result.DONE]
    digest = directory_digest(it.folder / "forecasts")
    assert cycle.run(it) == []  # nothing is due
    again = cycle.run(it, [START])
    assert [outcome.result for outcome in again] == [Result.ALREADY_DONE]
    assert again[0].exit_code() == 0
    assert again[0].exit_code(detailed=True) == ExitCode.ALREADY_DONE
    assert directory_digest(it.folder / "forecasts") == digest


def test_what_is_published_is_complete_and_readable(tmp_path: Path) -> None:
    it = station(tmp_path)
    for _ in range(3):
        cycle.run(it)
        it.clock.sleep(300)
    opened = open_forecasts(it.folder)
    assert dict(opened.sizes) == {"init_time": 3, "lead_time": 4, "y": 16, "x": 16}
    assert opened["rain_rate"].attrs["units"] == "mm h-1"
    assert list(opened["quality_flag"].values) == ["good"] * 3
    assert opened["init_time"].values[0] == to_numpy(START)
    assert np.isfinite(opened["rain_rate"].values).all()
    assert (opened["valid_time"] == opened["init_time"] + opened["lead_time"]).all()


def test_a_missing_frame_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    it = station(tmp_path)
    hide(it, START)
    waiting = cycle.run(it)[0]
    assert waiting.result is Result.NO_DATA_YET
    assert waiting.exit_code() == ExitCode.TRY_AGAIN
    assert waiting.missing == [iso(START)]
    assert rows(it)[0].state is State.DUE
    it.clock.sleep(120)
    late = station(tmp_path, it.clock.now())  # the frame has come
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
    it = station(tmp_path, START, {"late_data": changes})
    cycle.run(station(tmp_path, START - minutes(5), {"late_data": changes}))  # so that a grid is known
    hide(it, *(START - minutes(5 * i) for i in back))
    cycle.run(it)
    it.clock.sleep(600)
    outcome = next(one for one in cycle.run(it) if one.init_time == START)
    assert outcome.result is result
    row = next(one for one in rows(it) if one.init_time == START)
    assert (row.quality if result is Result.DEGRADED else "") == quality
    assert row.n_input_missing == len(back)
    assert str(len(back)) in row.reason
    if result is Result.DEGRADED:
        published = open_forecasts(it.folder, START, START)
        assert published["quality_flag"].item() == quality
        assert published["n_input_missing"].item() == len(back)


def test_a_fallback_starts_from_the_last_frame_that_came(tmp_path: Path) -> None:
    """Without the newest frame advection goes on from the one before it, a step longer."""
    changes = {"late_data": {"fallback": "advection", "deadline_minutes": 0}}
    write_reference(tmp_path / "checkpoint", "advection")
    before = station(tmp_path, START - minutes(5), changes)
    cycle.run(before)
    it = station(tmp_path, START, changes)
    hide(it, START)
    assert cycle.run(it)[0].quality == "fallback_advection"
    history = before.observations.read(it.axis.history_of(START)[:2], ["rain_rate"])
    expected = advection(history[None], 5, **it.chosen.fallback_options)[0, 1:, 0]
    issued = open_forecasts(it.folder, START, START)["rain_rate"].values[0]
    np.testing.assert_array_equal(issued, np.clip(expected, 0, None))


def test_a_restart_catches_up_and_skips_what_is_too_old(tmp_path: Path) -> None:
    it = station(tmp_path, START, {"backfill_hours": 0.5})
    cycle.run(it)
    it.clock.sleep(3600)
    outcomes = cycle.run(it)
    assert [outcome.result for outcome in outcomes] == [Result.DONE] * 7  # 06:30 to 07:00
    states = [row.state for row in rows(it)]
    assert states == [State.PUBLISHED] + [State.SKIPPED] * 5 + [State.PUBLISHED] * 7
    assert "live.backfill_hours" in rows(it)[1].reason


def test_a_clock_that_goes_back_plans_nothing(tmp_path: Path) -> None:
    it = station(tmp_path)
    cycle.run(it)
    assert isinstance(it.clock, SimulatedClock)
    it.clock.set(START - timedelta(hours=1))
    with pytest.raises(BusyError, match="earlier than the last entry"):
        cycle.run(it)
    assert len(rows(it)) == 1


def test_an_init_time_off_the_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"06:02:00 is no init time.*06:00:00"):
        cycle.run(station(tmp_path), [START + minutes(2)])


def test_every_minutes_thins_init_times(tmp_path: Path) -> None:
    it = station(tmp_path, START + minutes(20), {"every_minutes": 15})
    assert [one.init_time for one in cycle.run(it)] == [START + minutes(15)]
    with pytest.raises(InputError, match="expected a multiple of the model's 5 minutes"):
        station(tmp_path, START, {"every_minutes": 7})


def test_a_model_that_fails_is_tried_again_then_failed(tmp_path: Path) -> None:
    it = station(tmp_path)

    def broken(_: cycle.Prepared) -> np.ndarray:
        raise RuntimeError("no such luck")

    codes = [cycle.run(it, compute=broken)[0] for _ in range(3)]
    assert [code.exit_code() for code in codes] == [ExitCode.BUG] * 3
    assert rows(it)[0].state is State.FAILED
    assert "no such luck" in rows(it)[0].reason
    assert cycle.run(it) == []
    assert cycle.run(it, [START])[0].result is Result.DONE  # asked for by name, it is tried again


def test_values_that_are_not_finite_are_not_published(tmp_path: Path) -> None:
    it = station(tmp_path)

    def holes(prepared: cycle.Prepared) -> np.ndarray:
        fields = cycle.forecast(it, prepared)
        fields[1, 0, 3, 5] = np.nan
        return fields

    outcome = cycle.run(it, compute=holes)[0]
    assert outcome.result is Result.FAILED
    assert "1 values that are not finite" in outcome.reason
    assert not path_of(it.folder, START).exists()


def test_a_full_disk_is_not_the_cycles_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    it = station(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "forecasts")

    with monkeypatch.context() as patch:
        patch.setattr(archive, "stage", full)
        outcomes = [cycle.run(it)[0] for _ in range(5)]
    assert {outcome.exit_code() for outcome in outcomes} == {ExitCode.CANNOT_WRITE}
    assert rows(it)[0].state is State.DUE  # more often than max_attempts
    assert cycle.run(it)[0].result is Result.DONE


def test_too_little_space_says_how_much_to_free(tmp_path: Path) -> None:
    it = station(tmp_path, START, {"reserve_megabytes": 1e9})
    outcome = cycle.run(it)[0]
    assert outcome.exit_code() == ExitCode.CANNOT_WRITE
    assert "free" in outcome.reason
    assert "live.retention.days" in outcome.reason


def test_a_damaged_frame_is_read_again_from_the_feed(tmp_path: Path) -> None:
    it = station(tmp_path)
    cycle.run(it)
    frame = it.observations.frames([START])[START]
    content = bytearray(frame.path.read_bytes())
    content[len(content) // 2] ^= 4
    frame.path.write_bytes(content)
    it.clock.sleep(300)
    outcome = cycle.run(it)[0]
    assert outcome.exit_code() == ExitCode.DAMAGED
    assert frame.path.name in outcome.reason
    assert cycle.run(it)[0].result is Result.DONE


@pytest.mark.parametrize("harm", ["gone", "flipped"])
def test_a_lost_or_damaged_forecast_is_issued_anew_only_when_asked(tmp_path: Path, harm: str) -> None:
    it = station(tmp_path)
    cycle.run(it)
    path = path_of(it.folder, START)
    if harm == "gone":
        shutil.rmtree(path)
        with pytest.raises(DamagedError, match=r"--supersede"):
            cycle.run(it, [START])
    else:
        chunk = path / "rain_rate" / "c" / "0" / "0" / "0" / "0"
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
        with pytest.raises(DamagedError, match=r"--supersede"):
            open_forecasts(it.folder)
        with pytest.raises(DamagedError, match=r"--supersede"):
            cycle.run(it, [START])
    outcome = cycle.run(it, [START], supersede=True)[0]
    assert outcome.result is Result.DONE
    assert outcome.path.endswith(".r1.zarr")
    assert open_forecasts(it.folder)["rain_rate"].shape == (1, 4, 16, 16)
    assert cycle.run(it, [START], supersede=True)[0].result is Result.ALREADY_DONE


def test_another_forecast_needs_supersede_and_becomes_a_revision(tmp_path: Path) -> None:
    it = station(tmp_path)
    cycle.run(it)
    write_reference(tmp_path / "other", "advection")
    other = station(tmp_path, START, {"model": "other"})
    refused = cycle.run(other, [START])[0]
    assert refused.exit_code() == ExitCode.CANNOT_WRITE
    assert "--supersede" in refused.reason
    outcome = cycle.run(other, [START], supersede=True)[0]
    assert outcome.result is Result.DONE
    assert outcome.path.endswith(".r1.zarr")
    assert open_forecasts(it.folder)["model"].item() == "advection"
    assert [row.state for row in rows(it)] == [State.SUPERSEDED, State.PUBLISHED]
    assert path_of(it.folder, START).exists()  # what was issued stays on record


def test_a_model_of_another_grid_is_refused(tmp_path: Path) -> None:
    cycle.run(station(tmp_path))
    write_reference(tmp_path / "other", source={**SOURCE, "cells": 20})
    with pytest.raises(InputError, match=r"16.*expected 20|20.*expected 16"):
        cycle.run(station(tmp_path, START + minutes(5), {"model": "other"}))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    it = station(tmp_path)
    assert preview(it)[0].result is Result.DONE
    assert not it.folder.exists()
    cycle.run(it)
    digest = directory_digest(it.folder)
    assert preview(it) == []
    assert preview(it, [START])[0].result is Result.ALREADY_DONE
    it.clock.sleep(300)
    assert preview(it)[0].result is Result.DONE
    assert directory_digest(it.folder) == digest


def test_each_forecast_is_verified_once_when_its_truth_is_in(tmp_path: Path) -> None:
    it = station(tmp_path)
    for _ in range(8):
        cycle.run(it)
        it.clock.sleep(300)
    with Ledger(it.folder / LEDGER, read_only=True) as ledger:
        verified = ledger.verifications()
        sent = [content for _, content in ledger.pending()]
    assert [one.init_time for one in verified] == [START + minutes(5 * i) for i in range(4)]  # 20 minutes ahead
    assert verified[0].sums["rain_rate"]["forecast"] == verified[0].sums["rain_rate"]["persistence"]
    assert sum(content["kind"] == "scores" for content in sent) == 4
    assert sum(content["kind"] == "cycle" for content in sent) == 8


def test_drift_is_noticed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    it = station(tmp_path, START, {"drift": {"min_cycles": 2, "max_rmse_ratio": 0.9}})
    for _ in range(8):
        cycle.run(it)
        it.clock.sleep(300)
    assert events(it).count("drift") == 1
    assert "1.00 times that of persistence" in caplog.text


def test_retention_and_pruning_follow_the_clock(tmp_path: Path) -> None:
    it = station(tmp_path, START, {"retention": {"cycles": 2, "observations_hours": 0.5}})
    for _ in range(12):
        cycle.run(it)
        it.clock.sleep(300)
    assert open_forecasts(it.folder).sizes["init_time"] == 2
    assert len(it.observations.times(START - timedelta(days=1), it.clock.now())) < 13
    it.clock.sleep(86400)
    cycle.run(it, [it.axis.floor(it.clock.now())])
    assert len(list((it.folder / "forecasts").iterdir())) <= 3


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
    it = station(tmp_path)
    cycle.run(it)
    period = (START - minutes(60)).replace(tzinfo=None), (START + minutes(60)).replace(tzinfo=None)
    source = StormsOptions(**{**SOURCE, "events": 24 * 155}).model_copy(update={"period": period})
    ingest(source, params().ingest, tmp_path / "observations.zarr", "synchronous")
    times = np.array([to_numpy(START - minutes(5)), to_numpy(START), to_numpy(START + minutes(5))])
    hindcast = tmp_path / "out.zarr"
    hindcast_all(tmp_path / "checkpoint", tmp_path / "observations.zarr", times, hindcast, config.Forecast())
    with store.open_forecasts(hindcast) as made:
        expected = made.sel(init_time=times[1]).load()
    issued = open_forecasts(it.folder)
    np.testing.assert_array_equal(issued["rain_rate"].values[0], expected["rain_rate"].values)
    assert np.isfinite(expected["rain_rate"].values).all()
    for name in ("lead_time", "y", "x"):
        np.testing.assert_array_equal(issued[name].values, expected[name].values)
