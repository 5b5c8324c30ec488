import shutil
from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline import config
from fieldcast.pipeline import forecast as stage
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, FORECASTS, OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecast import forecast
from fieldcast.pipeline.forecasting.forecaster import forecast_members, load
from fieldcast.pipeline.train import train
from tests.conftest import rewrite


@pytest.fixture
def trained(project: Path) -> Path:
    train(rewrite(project, {}), "damped_persistence")
    return project


def run(project: Path, out: Path, scheduler: str | None = None) -> np.ndarray:
    init_times = read_init_times(PREPARED / "init_times.csv", "test")
    params = rewrite(project, {})
    forecast(CHECKPOINTS / "damped_persistence", OBSERVATIONS, init_times, out, params.forecast, scheduler)
    return init_times


def test_file_equals_memory(trained: Path) -> None:
    out = FORECASTS / "damped_persistence.zarr"
    init_times = run(trained, out)
    written = store.open_forecasts(out)
    observed = store.open_observations(OBSERVATIONS)["rain_rate"]
    steps = np.array([-10, -5, 0], dtype="timedelta64[m]")
    history = np.stack([observed.sel(time=time + steps).values for time in init_times])[:, :, None]
    expected = load(CHECKPOINTS / "damped_persistence")(history, init_times)
    np.testing.assert_array_equal(written["rain_rate"].values, expected[:, :, 0])
    assert len(init_times) > 3  # more than one block, the last one not full
    assert len(init_times) % 2 == 1


def test_labels(trained: Path) -> None:
    out = FORECASTS / "damped_persistence.zarr"
    run(trained, out)
    written = store.open_forecasts(out)
    assert (written["valid_time"] == written["init_time"] + written["lead_time"]).all()
    assert written["lead_time"].values.astype("timedelta64[m]").astype(int).tolist() == [5, 10, 15, 20]
    assert written["rain_rate"].attrs["units"] == "mm h-1"
    assert written["rain_rate"].attrs["standard_name"] == "rainfall_rate"
    assert written.attrs["model"] == "damped_persistence"
    assert written.attrs["checkpoint_digest"] == store.directory_digest(CHECKPOINTS / "damped_persistence")
    assert written.attrs["data_digest"] == read_digest(PREPARED)
    observed = store.open_observations(OBSERVATIONS)
    np.testing.assert_array_equal(written["x"], observed["x"])
    assert written["x"].attrs == observed["x"].attrs


def test_rerun_and_other_schedulers_write_the_same_bytes(trained: Path) -> None:
    for name, scheduler in (("one", None), ("two", None), ("three", "synchronous")):
        run(trained, Path(name), scheduler)
    digests = {store.directory_digest(Path(name)) for name in ("one", "two", "three")}
    assert len(digests) == 1


def planted(value: float, period: str, params: config.Params) -> np.datetime64:
    """Write `value` into one cell of the observations, three frames after the start of a period; return its time."""
    observed = store.open_observations(OBSERVATIONS).load()
    place = int(np.searchsorted(observed.time.values, np.datetime64(getattr(params.prepare.splits, period).start))) + 3
    observed.rain_rate[place, 5, 6] = value
    shutil.rmtree(OBSERVATIONS)
    grid, size = store.forecast_grid(observed, ["rain_rate"]), observed.sizes["time"]
    store.create_observations(OBSERVATIONS, grid, observed.time.values, observed.frame_present.values, size)
    store.write_block(OBSERVATIONS, 0, observed[["rain_rate"]])
    store.finish(OBSERVATIONS)
    return observed.time.values[place]


@pytest.mark.parametrize("kind", ["damped_persistence", "linear", "lagrangian_regression"])
def test_no_reference_is_fitted_to_an_infinity(project: Path, kind: str) -> None:
    params = rewrite(project, {"models": {"one": {"kind": kind}}})
    time = planted(np.inf, "train", params)
    with pytest.raises(InputError, match=f"observations.zarr: rain_rate is inf at {np.datetime64(time, 's')}"):
        train(params, "one")
    assert not (CHECKPOINTS / "one").exists()


def test_no_forecast_from_an_infinity(trained: Path) -> None:
    time = planted(-np.inf, "test", rewrite(trained, {}))
    with pytest.raises(InputError, match=f"observations.zarr: rain_rate is -inf at {np.datetime64(time, 's')}"):
        run(trained, Path("out"))
    assert not Path("out").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_forecast_that_is_no_number_is_not_written(
    trained: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    def members(*arguments: object) -> np.ndarray:
        fields = forecast_members(*arguments)  # type: ignore[arg-type]
        fields[0, 0, 2, 0, 3, 4] = value
        return fields

    monkeypatch.setattr(stage, "forecast_members", members)
    message = rf"damped_persistence: its forecast of rain_rate from .* is {value} at lead 3, row 3, column 4, expected"
    with pytest.raises(InputError, match=message):
        run(trained, Path("out"), "synchronous")
    assert not Path("out").exists()


@pytest.mark.slow
def test_on_a_dask_cluster(trained: Path) -> None:
    from distributed import LocalCluster

    run(trained, Path("threads"))
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        run(trained, Path("cluster"), cluster.scheduler_address)
    assert store.directory_digest(Path("threads")) == store.directory_digest(Path("cluster"))


@pytest.mark.slow
def test_a_network_forecasts_a_larger_domain_by_tiles(project: Path) -> None:
    params = rewrite(project, {"sample": {"crop_cells": 16}, "train": {"epochs": 1}, "forecast": {"overlap_cells": 6}})
    train(params, "convlstm")
    init_times = read_init_times(PREPARED / "init_times.csv", "test")[:2]
    forecast(CHECKPOINTS / "convlstm", OBSERVATIONS, init_times, Path("tiles"), params.forecast)
    whole = params.forecast.model_copy(update={"tile_cells": 24})
    forecast(CHECKPOINTS / "convlstm", OBSERVATIONS, init_times, Path("whole"), whole)
    tiles, once = (store.open_forecasts(Path(name))["rain_rate"].values for name in ("tiles", "whole"))
    assert np.isfinite(tiles).all()
    assert not np.array_equal(tiles, once)
    assert np.abs(tiles - once).mean() < 0.1 * np.abs(once).mean() + 0.05
