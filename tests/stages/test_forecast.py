from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, FORECASTS, OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.forecast import forecast
from fieldcast.pipeline.forecasting.forecaster import load
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
