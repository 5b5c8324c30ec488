import numpy as np
import pytest
import xarray as xr

from pipeline import verify as stage
from pipeline.schema import InputError, SchemaError
from pipeline.scores.sums import field_sums, read_sums, scores_of, write_sums
from pipeline.verify import verify

HISTORY, INITS, LEADS, NY, NX = 3, 7, 4, 11, 13
RAIN = ("rain_rate", {"units": "mm h-1"})
THRESHOLDS = {"rain_rate": [0.5, 2.0]}


@pytest.fixture
def observed():
    rng = np.random.default_rng(1)
    times = np.datetime64("2020-06-01", "ns") + np.arange(HISTORY + INITS + LEADS) * np.timedelta64(5, "m")
    rain = rng.gamma(0.5, 2, (times.size, NY, NX)).astype(np.float32)
    rain[:, 0, :] = np.nan  # never observed
    rain[HISTORY + 2, 5, 5] = np.nan  # one cell, once
    metres = {"units": "m"}
    return xr.Dataset(
        {"rain_rate": (("time", "y", "x"), rain, RAIN[1])},
        {"time": times, "y": ("y", np.arange(NY) * 2000.0, metres), "x": ("x", np.arange(NX) * 2000.0, metres)},
    )


@pytest.fixture
def forecasts(observed):
    """Return forecasts that are right everywhere, and complete: 1 where the observation is missing for once."""
    inits = observed.time.values[HISTORY - 1 : HISTORY - 1 + INITS]
    leads = (np.arange(1, LEADS + 1) * np.timedelta64(5, "m")).astype("timedelta64[ns]")
    valid_time = inits[:, None] + leads
    index = np.searchsorted(observed.time.values, valid_time)
    values = np.nan_to_num(observed.rain_rate.values[index], nan=1.0)
    values[:, :, 0, :] = np.nan
    coords = {"init_time": inits, "lead_time": leads, "y": observed.y, "x": observed.x}
    dims = ("init_time", "lead_time", "y", "x")
    dataset = xr.Dataset({"rain_rate": (dims, values, RAIN[1])}, coords, {"model": "perfect"})
    return dataset.assign_coords(valid_time=(dims[:2], valid_time), spatial_ref=0)


def test_right_forecasts_score_perfectly_and_know_their_cells(forecasts, observed):
    sums = verify(forecasts, observed, THRESHOLDS, [2.0, 10.0])
    scores = scores_of(sums)
    assert sums.attrs["model"] == "perfect"
    assert set(scores["rmse"].values()) == {0.0}
    assert set(scores["csi_2_mm_h"].values()) == set(scores["fss_0.5_mm_h_10_km"].values()) == {1.0}
    assert list(scores["rmse"]) == [5, 10, 15, 20]
    n = field_sums(sums, "rain_rate")["n"].values
    gap = np.add.outer(np.arange(INITS) + HISTORY - 1, np.arange(1, LEADS + 1)) == HISTORY + 2
    np.testing.assert_array_equal(n, (NY - 1) * NX - gap)


def test_blocks_of_one_init_time_give_the_same_sums(forecasts, observed, monkeypatch):
    whole = verify(forecasts, observed, THRESHOLDS, [10.0])
    monkeypatch.setattr(stage, "BLOCK_BYTES", 1)
    xr.testing.assert_identical(verify(forecasts, observed, THRESHOLDS, [10.0]), whole)


def test_init_times_in_another_order_give_the_same_scores(forecasts, observed):
    shuffled = forecasts.isel(init_time=[4, 1, 0, 6, 5, 3, 2]) + 0.25
    for name in shuffled:
        shuffled[name].attrs = RAIN[1]
    expected = scores_of(verify(shuffled.sortby("init_time"), observed, THRESHOLDS, []))
    for name, by_lead in scores_of(verify(shuffled, observed, THRESHOLDS, [])).items():
        assert by_lead == pytest.approx(expected[name], nan_ok=True)


def test_the_file_is_byte_identical_and_reads_back(forecasts, observed, tmp_path):
    sums = verify(forecasts, observed, THRESHOLDS, [2.0])
    for name in ("a", "b"):
        write_sums(sums, tmp_path / name / "perfect.nc")
    assert (tmp_path / "a/perfect.nc").read_bytes() == (tmp_path / "b/perfect.nc").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["perfect.nc"]
    again = read_sums(tmp_path / "a/perfect.nc")
    xr.testing.assert_equal(again, sums)
    assert scores_of(again) == scores_of(sums)


def test_a_field_without_thresholds_has_no_event_scores(forecasts, observed):
    scores = scores_of(verify(forecasts, observed, {}, [10.0]))
    assert list(scores) == ["rmse", "mae", "mean_error", "mse_frame"]


def test_two_fields_keep_their_scores_apart(forecasts, observed):
    warm = {"units": "K"}
    both = (
        data.assign(heat=(data.rain_rate + extra).assign_attrs(warm)) for data, extra in ((forecasts, 3), (observed, 1))
    )
    scores = scores_of(verify(*both, THRESHOLDS, []))
    assert set(scores["rain_rate/rmse"].values()) == {0.0}
    assert scores["heat/mean_error"][5] == pytest.approx(2.0)
    assert "heat/csi_2_k" not in scores


def test_a_hole_in_a_forecast_is_refused(forecasts, observed):
    forecasts.rain_rate[2, 1, 4, 4] = np.nan
    with pytest.raises(SchemaError, match=r"'rain_rate' of init time 2020-06-01T00:20.* lead 10 minutes in 1 cells"):
        verify(forecasts, observed, THRESHOLDS, [])


def test_what_does_not_fit_is_refused(forecasts, observed):
    with pytest.raises(InputError, match="no field \\['snow'\\]"):
        verify(forecasts, observed, {"snow": [1.0]}, [])
    with pytest.raises(SchemaError, match="different grids: 'x'"):
        verify(forecasts.assign_coords(x=forecasts.x + 1), observed, {}, [])
    with pytest.raises(SchemaError, match="no frame at"):
        verify(forecasts, observed.isel(time=slice(0, -2)), {}, [])
    with pytest.raises(SchemaError, match="forecast in 'mm h-1' and observed in 'K'"):
        verify(forecasts, observed.assign(rain_rate=observed.rain_rate.assign_attrs(units="K")), {}, [])
    bare = [data.assign_coords(x=np.arange(NX), y=np.arange(NY)) for data in (forecasts, observed)]
    with pytest.raises(InputError, match="neighbourhoods_km empty"):
        verify(*bare, THRESHOLDS, [10.0])
