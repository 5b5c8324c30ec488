"""A small store of observations: 11 frames of 5 x 7 cells, one of them missing, in shards of 3."""

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.datasets import store

FRAMES, HEIGHT, WIDTH, SHARD = 11, 5, 7, 3
TIMES = np.datetime64("2020-01-01", "ns") + np.arange(FRAMES) * np.timedelta64(5, "m")


@pytest.fixture
def grid() -> xr.Dataset:
    empty = np.empty((0, HEIGHT, WIDTH), np.float32)
    rain = (("time", "y", "x"), empty, {"units": "mm h-1", "valid_min": 0.0, "grid_mapping": "spatial_ref"})
    coords = {
        "y": ("y", np.arange(HEIGHT) * 2.0, {"units": "km"}),
        "x": ("x", np.arange(WIDTH) * 2.0, {"units": "km"}),
        "spatial_ref": ((), np.int32(0), {"crs_wkt": "WKT"}),
    }
    return xr.Dataset({"rain_rate": rain}, coords, {"title": "T"})


@pytest.fixture
def rain() -> np.ndarray:
    field = np.random.default_rng(0).gamma(1, size=(FRAMES, HEIGHT, WIDTH)).astype(np.float32)
    field[4, 2] = np.nan
    return field


def block(values: np.ndarray, *dims: str) -> xr.Dataset:
    return xr.Dataset({"rain_rate": ((*dims, "y", "x"), values)})


def write(path, grid, rain) -> None:
    store.create_observations(path, grid, TIMES, np.arange(FRAMES) != 4, SHARD)
    for start in range(0, FRAMES, SHARD):
        store.write_block(path, start, block(rain[start : start + SHARD], "time"))
    store.finish(path)
