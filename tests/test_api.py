"""Python: `from fieldcast import load, open_observations, open_forecasts, verify`."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fieldcast
from fieldcast import load, open_forecasts, open_observations, verify
from fieldcast.pipeline import config
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import FORECASTS, OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.preparation.climatology import read_climatology
from fieldcast.pipeline.datasets.signature import Statistics
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecast import forecast
from fieldcast.pipeline.verification import blocks
from fieldcast.pipeline.verification.aggregation import scores_of
from fieldcast.pipeline.verification.scores import by_key
from tests.checkpoints import untrained

STORE = str(FORECASTS / "mine.zarr")


@pytest.fixture
def forecasts(project: Path) -> xr.Dataset:
    """Return what the stage `forecast` wrote: an ensemble, from four init times."""
    folder = untrained(project, "unet", spread=0.05, output="quantiles", members=3)
    params = config.load()
    init_times = read_init_times(PREPARED / "init_times.csv", "test")[:4]
    forecast(folder, OBSERVATIONS, init_times, Path(STORE), params.forecast)
    return open_forecasts(STORE).load()


def test_forecasts_are_those_of_the_stage(forecasts: xr.Dataset) -> None:
    observed = open_observations("data/observations.zarr")
    model = load("mine")
    xr.testing.assert_identical(model.forecast(observed, forecasts["init_time"].values), forecasts)
    first = forecasts["init_time"].values[0]
    history = observed.sel(time=slice(None, first)).isel(time=slice(-3, None))
    alone = model.forecast(history["rain_rate"])
    xr.testing.assert_equal(alone, forecasts.isel(init_time=[0]))
    assert alone["rain_rate"].attrs["units"] == "mm h-1"
    assert repr(model) == (
        "mine (unet): forecasts rain_rate up to 20 minutes ahead, every 5,\n"
        "from 3 frames of rain_rate [mm h-1] on 24 x 24 cells; members: 3"
    )


def test_scores_are_those_of_the_stage(forecasts: xr.Dataset) -> None:
    params = config.load()
    data_range = {channel.name: channel.max - channel.min for channel in Statistics.read(PREPARED).channels}
    sums = blocks.verify(forecasts, open_observations(), params.verify, read_climatology(PREPARED), data_range)
    expected = by_key(scores_of(sums))
    found = verify(STORE, thresholds={"rain_rate": [0.5, 2]}, neighbourhoods_km=[2, 10], prepared="data/prepared")
    assert found["rmse"].attrs == {"long_name": "RMSE", "units": "mm h-1"}
    for key, values in {
        "rmse": found["rmse"],
        "crps": found["crps"],
        "psnr": found["psnr"],
        "anomaly_correlation": found["anomaly_correlation"],
        "csi_2_mm_h": found["csi"].sel(threshold=2),
        "fss_0.5_mm_h_10_km": found["fss"].sel(threshold=0.5, scale=10),
    }.items():
        np.testing.assert_array_equal(values, list(expected[key].values()), key)
    assert "psnr" not in verify(forecasts, "data/observations.zarr")


def test_what_does_not_fit_is_named(project: Path) -> None:
    model = load(str(untrained(project, "unet")))
    history = open_observations().isel(time=slice(0, 5)).load()
    rain = history["rain_rate"]
    for wrong, words in (
        (history.assign(rain_rate=rain.assign_attrs(units="K")), "units of rain_rate are 'K', expected 'mm h-1'"),
        (history.assign(rain_rate=rain.drop_attrs()), "rain_rate has no units, expected 'mm h-1'"),
        (history.rename(rain_rate="precipitation"), "there is no rain_rate among frame_present, precipitation"),
        (history.isel(x=slice(1, None)), "x has 23 cells, expected 24"),
        (history.assign_coords(y=history.y + 500), "y starts at"),
        (history.isel(time=[0, 1, 2, 4]), "there is no frame at 2024-06-01T00:15:00, one of 3 up to 2024-06-01T00:20"),
        (history.assign(rain_rate=rain.expand_dims(level=2)), "rain_rate has dimensions level, time, y, x, expected"),
        (history.assign(rain_rate=rain.where(rain.y > rain.y[5], np.inf)), "rain_rate is inf at 2024-06-01T00:10:00"),
        (history.isel(time=slice(0)), "it has no frame, expected 3"),
        (history + 1000, "rain_rate is about 1000, and 0 to "),
    ):
        with pytest.raises(InputError, match="history: ") as caught:
            model.forecast(wrong)
        assert words in str(caught.value)
    with pytest.raises(InputError, match="expected models:/NAME@ALIAS"):
        load("models:/rain")
    with pytest.raises(InputError, match=r"nowhere/config.json: no such file"):
        load("nowhere")


def test_observations_that_do_not_fit_forecasts_are_named(forecasts: xr.Dataset) -> None:
    observed = open_observations()
    with pytest.raises(InputError, match="observed: units of rain_rate are 'K', expected 'mm h-1'"):
        verify(forecasts, observed.assign(rain_rate=observed["rain_rate"].assign_attrs(units="K")))
    with pytest.raises(InputError, match="observed: x has 20 cells, expected 24"):
        verify(forecasts, observed.isel(x=slice(0, 20)))
    with pytest.raises(InputError, match=r"observed: there is no frame at 2024-06-02T06:15:00, a valid time"):
        verify(forecasts, observed.sel(time=slice(None, "2024-06-02T06:10")))


def test_stores_open_with_xarray_alone(forecasts: xr.Dataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_zarr(STORE, consolidated=True)
        xr.testing.assert_equal(plain.load(), forecasts)
        assert "rain_rate" in xr.open_zarr(OBSERVATIONS, consolidated=True)


def test_a_name_that_fieldcast_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'verity'"):
        _ = fieldcast.verity
