import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.preparation.climatology import fit_climatology
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.datasets.preparation.splits import channel_order, select_init_times
from fieldcast.pipeline.datasets.schema import FRAME_PRESENT
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.prepare import prepare, training_frames

START = np.datetime64("2024-01-01T00:00", "ns")
STEP = np.timedelta64(1, "h")


def observations(frames: int = 24 * 20, seed: int = 5) -> xr.Dataset:
    """Return hourly fields (3, 5) with a daily cycle, some missing cells, and one missing frame."""
    draws = np.random.default_rng(seed)
    times = START + np.arange(frames) * STEP
    daily = np.sin(2 * np.pi * np.arange(frames) / 24)[:, None, None]
    values = (280 + 5 * daily + draws.normal(size=(frames, 3, 5))).astype(np.float32)
    values[draws.random(values.shape) < 0.02] = np.nan
    present = np.ones(frames, dtype=bool)
    present[100] = False
    values[100] = np.nan
    return xr.Dataset(
        {
            "t2m": (("time", "y", "x"), values, {"units": "K", "long_name": "Temperature"}),
            FRAME_PRESENT: ("time", present),
        },
        coords={"time": times, "y": np.arange(3.0), "x": np.arange(5.0)},
    )


def options(**changes: object) -> config.Prepare:
    splits = {
        "train": {"start": "2024-01-01T00:00", "end": "2024-01-12T23:00"},
        "validation": {"start": "2024-01-14T00:00", "end": "2024-01-15T00:00"},
        "test": {"start": "2024-01-17T00:00", "end": "2024-01-19T00:00", "every_steps": 3},
    }
    return config.Prepare.model_validate({"splits": splits, "climatology": "hour_of_day", **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_test_period_reaches_neither_statistics_nor_climatology(tmp_path: Path) -> None:
    before, after = observations(), observations()
    reach = np.datetime64("2024-01-12T23:00") + 3 * STEP  # last training target
    after["t2m"].loc[{"time": slice(reach + STEP, None)}] += 50
    for name, data in (("before", before), ("after", after)):
        prepare(data, options(), 4, 3, tmp_path / name)
    first, second = files(tmp_path / "before"), files(tmp_path / "after")
    assert first["statistics.json"] == second["statistics.json"]
    assert first["climatology.nc"] == second["climatology.nc"]
    assert first["init_times.csv"] == second["init_times.csv"]
    assert first["quality.json"] != second["quality.json"]
    after["t2m"].loc[{"time": reach}] += 50  # the last training target does count
    prepare(after, options(), 4, 3, tmp_path / "target")
    assert files(tmp_path / "target")["statistics.json"] != first["statistics.json"]


@pytest.mark.parametrize(
    ("first", "last", "counts"),
    [
        ("2024-01-15T04:00", "2024-01-19T23:00", False),  # after the last target of validation
        ("2024-01-13T03:00", "2024-01-13T20:00", False),  # between training and validation
        ("2024-01-13T21:00", "2024-01-13T21:00", True),  # the first history frame of validation
        ("2024-01-15T03:00", "2024-01-15T03:00", True),  # its last target
        ("2024-01-02T00:00", "2024-01-02T00:00", True),
    ],
)
def test_the_digest_is_of_what_models_learn_from(tmp_path: Path, first: str, last: str, counts: bool) -> None:
    before, after = observations(), observations()
    after["t2m"].loc[{"time": slice(first, last)}] += 1
    for name, data in (("before", before), ("after", after)):
        prepare(data, options(), 4, 3, tmp_path / name)
    assert (read_digest(tmp_path / "before") != read_digest(tmp_path / "after")) == counts
    (tmp_path / "before" / "learned.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"learned\.json: is"):
        read_digest(tmp_path / "before")
    manifest.write(tmp_path / "before")
    with pytest.raises(InputError, match="run the prepare stage again"):
        read_digest(tmp_path / "before")


def test_rerun_is_byte_identical(tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare(observations(), options(), 4, 3, tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert sorted(files(tmp_path / "one")) == [
        "climatology.nc",
        "init_times.csv",
        "learned.json",
        "manifest.json",
        "quality.json",
        "quality.png",
        "statistics.json",
    ]


def test_splits_are_disjoint_and_their_frames_too(tmp_path: Path) -> None:
    prepare(observations(), options(), 4, 3, tmp_path)
    table = pd.read_csv(tmp_path / "init_times.csv", parse_dates=["init_time"])
    frames = {
        split: {time + k * pd.Timedelta(hours=1) for time in rows["init_time"] for k in range(-3, 4)}
        for split, rows in table.groupby("split")
    }
    assert set(frames) == {"train", "validation", "test"}
    assert not frames["train"] & frames["validation"]
    assert not frames["validation"] & frames["test"]


def test_climatology_by_hand() -> None:
    data = observations()
    training = training_frames(data, options().splits.train, pd.Timedelta(hours=3).to_pytimedelta())
    by_hour = fit_climatology(training, ["t2m"], options())["t2m"]
    expected = training["t2m"].groupby("time.hour").mean("time")
    np.testing.assert_allclose(by_hour.values, expected.values, rtol=1e-6)
    one = fit_climatology(training, ["t2m"], options(climatology="mean"))["t2m"]
    np.testing.assert_allclose(one.values[0], training["t2m"].mean("time"), rtol=1e-6)
    short = fit_climatology(training, ["t2m"], options(climatology="auto"))["t2m"]
    assert short.sizes["hour"] == 1  # 13 days are fewer than 15
    long = fit_climatology(training, ["t2m"], options(climatology="auto", climatology_min_days=13))["t2m"]
    assert long.sizes["hour"] == 24


@pytest.mark.parametrize("anomalies", [False, True])
def test_statistics_by_hand(tmp_path: Path, anomalies: bool) -> None:
    data = observations()
    prepare(data, options(anomalies=anomalies), 4, 3, tmp_path)
    channel = json.loads((tmp_path / "statistics.json").read_text())["channels"][0]
    training = data["t2m"].sel(time=slice("2024-01-01T00:00", "2024-01-13T02:00"))
    if anomalies:
        climatology = xr.open_dataset(tmp_path / "climatology.nc")["t2m"]
        training = training - climatology.sel(hour=training["time"].dt.hour).drop_vars("hour")
        assert channel["mean"] == 0
    else:
        assert channel["mean"] == pytest.approx(float(training.mean()), rel=1e-6)
    assert channel["scale"] == pytest.approx(float(training.std()), rel=1e-4)
    assert channel["valid_values"] == int(training.notnull().sum())
    frames = data["t2m"].sel(time=training["time"])
    assert (channel["min"], channel["max"]) == (float(frames.min()), float(frames.max()))  # in physical units


def test_the_signature_holds_inputs_too(tmp_path: Path) -> None:
    data = observations()
    data["u10"] = data["t2m"].assign_attrs(units="m s-1")
    prepare(data, options(targets=["u10"]), 4, 3, tmp_path)
    statistics = json.loads((tmp_path / "statistics.json").read_text())
    assert sorted(statistics) == ["anomalies", "channels", "signature", "targets"]
    assert statistics["signature"] == {
        "units": {"u10": "m s-1", "t2m": "K"},
        "y": {"cells": 3, "first": 0.0, "last": 2.0, "units": "1"},
        "x": {"cells": 5, "first": 0.0, "last": 4.0, "units": "1"},
        "crs": None,
        "step_minutes": 60,
        "phase_seconds": 0,
        "located": None,  # no latitude and longitude of each cell
    }


def test_init_times_need_complete_history_and_horizon() -> None:
    times = START + np.arange(40) * STEP
    there = np.ones(40, dtype=bool)
    there[10] = False
    splits = {
        "train": {"start": "2024-01-01T00:00", "end": "2024-01-01T20:00"},
        "validation": {"start": "2024-01-02T01:00", "end": "2024-01-02T02:00"},
        "test": {"start": "2024-01-02T07:00", "end": "2024-01-02T15:00", "every_steps": 2},
    }
    chosen = options(splits=splits)
    table = select_init_times(times, there, chosen, history=3, horizon=2)
    hours = ((table["init_time"].to_numpy() - START) / STEP).astype(int)
    train = hours[table["split"] == "train"]
    assert train.tolist() == [2, 3, 4, 5, 6, 7, 13, 14, 15, 16, 17, 18, 19, 20]  # 8 and 9 would forecast frame 10
    assert hours[table["split"] == "test"].tolist() == [31, 33, 35, 37]  # 39 has no frames after it
    lenient = options(splits=splits, max_missing_history=1, max_missing_horizon=1)
    assert len(select_init_times(times, there, lenient, 3, 2)) == len(table) + 5


def test_horizon_longer_than_an_event() -> None:
    times = START + np.arange(480) * STEP
    there = np.arange(480) % 10 < 6
    with pytest.raises(InputError, match="is 7 frames, longer than the longest event of 6 consecutive frames"):
        select_init_times(times, there, options(), 4, 3)


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    empty = observations()
    empty["t2m"].loc[{"time": slice(None, "2024-01-13T12:00")}] = np.nan
    with pytest.raises(InputError, match=r"splits.train .* no init time .* 0 frames with data"):
        prepare(empty, options(), 4, 3, tmp_path)
    early = options(splits={**options().splits.model_dump(), "train": {"start": "2023-01-01", "end": "2023-01-02"}})
    with pytest.raises(InputError, match="no init time with a complete history"):
        prepare(observations(), early, 4, 3, tmp_path)


def test_unknown_variables_are_named() -> None:
    with pytest.raises(InputError, match=r"prepare.targets names 'rain', the observations have t2m, u10"):
        channel_order(["t2m", "u10"], options(targets=["rain"]))
    with pytest.raises(InputError, match=r"prepare.transform names 'rain'"):
        channel_order(["t2m"], options(transform={"rain": {"kind": "log"}}))
    assert channel_order(["t2m", "u10"], options(targets=["u10"])) == ["u10", "t2m"]


def test_overlapping_splits_are_refused(tmp_path: Path) -> None:
    splits = options().splits.model_dump()
    splits["validation"] = {"start": datetime(2024, 1, 13, 2), "end": datetime(2024, 1, 15)}
    with pytest.raises(InputError, match=r"expected at least history \+ horizon = 7 steps, so 2024-01-13 06:00:00 or"):
        prepare(observations(), options(splits=splits), 4, 3, tmp_path)


def test_quality_report_by_day(tmp_path: Path) -> None:
    prepare(observations(), options(), 4, 3, tmp_path)
    report = json.loads((tmp_path / "quality.json").read_text())
    assert report["frames"] == 480
    assert report["missing_frames"] == 1
    assert 0.015 < report["missing_cell_share"] < 0.025
    assert len(report["days"]) == 20
    assert report["days"][4]["missing_frames"] == 1
    assert report["variables"]["t2m"]["wet_share"] == 1  # kelvins above 0.1
    assert report["variables"]["t2m"]["refused_values"] == 0


def test_quality_is_of_each_variable_in_their_order(tmp_path: Path) -> None:
    data = observations()
    data["wind"] = data["t2m"] / 100
    data["wind"].attrs["units"] = "m s-1"
    both = options(targets=["wind", "t2m"], wet_above={"t2m": 275.0})
    prepare(data, both, 4, 3, tmp_path / "p")
    report = json.loads((tmp_path / "p" / "quality.json").read_text())["variables"]
    assert list(report) == ["wind", "t2m"]
    valid = data["t2m"].values[np.isfinite(data["t2m"].values)]
    for name, scale in (("wind", 100), ("t2m", 1)):
        assert report[name]["min"] == pytest.approx(valid.min() / scale, rel=1e-5)
        assert report[name]["max"] == pytest.approx(valid.max() / scale, rel=1e-5)
    assert report["wind"]["wet_share"] is None
    assert report["t2m"]["wet_share"] == pytest.approx(float((valid > 275).mean()), abs=0.01)


def test_values_refused_are_counted_beside_the_gaps(tmp_path: Path) -> None:
    data = observations()
    data["wind"] = data["t2m"]
    counts = np.zeros(data.sizes["time"], np.int32)
    counts[[30, 31, 470]] = 5, 2, 1
    data["t2m_refused"] = ("time", counts)
    prepare(data, options(), 4, 3, tmp_path / "p")
    report = json.loads((tmp_path / "p" / "quality.json").read_text())
    assert [report["variables"][name]["refused_values"] for name in ("t2m", "wind")] == [8, 0]
    assert [day["variables"]["t2m"]["refused_values"] for day in report["days"]] == [0, 7, *[0] * 17, 1]
    prepare(data.drop_vars("t2m_refused"), options(), 4, 3, tmp_path / "q")
    plain = json.loads((tmp_path / "q" / "quality.json").read_text())
    assert plain["missing_cell_share"] == report["missing_cell_share"]


@pytest.mark.parametrize(
    ("values", "transform", "message"),
    [
        (np.inf, {}, r"observations.zarr: t2m is inf at 2024-01-03T02:00:00 \(1 such values\)"),
        (-np.inf, {}, "t2m is -inf at 2024-01-03T02:00:00"),
        (3e38, {"t2m": {"kind": "log", "floor": 0.1}}, r"t2m is log with floor 0.1, but a value of 3e\+38 m is beyond"),
        (-3.0, {"t2m": {"kind": "log", "floor": 0.1}}, "transform.t2m is log, but t2m has values of -3 to"),
    ],
)
def test_values_that_statistics_cannot_take_are_refused(tmp_path, values, transform, message) -> None:
    data = observations()
    data["t2m"][50, 1, 1] = values
    data["t2m"].attrs["units"] = "m"
    with pytest.raises(InputError, match=message):
        prepare(data, options(transform=transform), 4, 3, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_transform_of_amounts_is_refused_for_kelvins(tmp_path) -> None:
    with pytest.raises(InputError, match=r"transform.t2m is db, but t2m is in K, with values of 27.* K, expected"):
        prepare(observations(), options(transform={"t2m": {"kind": "db", "floor": 0.1}}), 4, 3, tmp_path / "p")


def test_an_infinity_in_the_test_period_is_refused(tmp_path) -> None:
    data = observations()
    data["t2m"][470, 2, 0] = np.inf
    with pytest.raises(InputError, match="t2m is inf at 2024-01-20T14:00:00"):
        prepare(data, options(), 4, 3, tmp_path / "p")


def test_no_statistic_is_written_that_is_no_number(tmp_path) -> None:
    data = observations()
    data["t2m"].attrs["valid_max"] = np.nan
    with pytest.raises(InputError, match=r"statistics.json: valid_max of t2m is nan .* nothing is written"):
        prepare(data, options(), 4, 3, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_odd_names_and_units_are_drawn(tmp_path) -> None:
    data = observations()
    data["t2m"].attrs = {"units": "mm [/h]", "long_name": "rain in $, $x_1"}
    prepare(data, options(), 4, 3, tmp_path)
    assert json.loads((tmp_path / "quality.json").read_text())["variables"]["t2m"]["units"] == "mm [/h]"
    assert (tmp_path / "quality.png").stat().st_size > 10_000


def test_a_constant_field_is_refused(tmp_path) -> None:
    data = observations()
    data["t2m"] = data["t2m"] * 0 + 5
    with pytest.raises(InputError, match="t2m is 5 K in every cell of the training period"):
        prepare(data, options(), 4, 3, tmp_path / "p")
