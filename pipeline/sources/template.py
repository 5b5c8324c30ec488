"""The grid a source hands on: its template, the crop and coarsening that all sources share, and frames read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
import xarray as xr
from einops import rearrange

from fieldcast.pipeline.config.sources import Crop
from fieldcast.pipeline.datasets.schema import (
    GRID_MAPPING,
    LATITUDE,
    LONGITUDE,
    RAIN_RATE_UNITS,
    TIME,
    X,
    Y,
    field_names,
    refused_name,
)
from fieldcast.pipeline.errors import InputError

MOST_CELLS = 100_000_000  # of a frame
RAIN_RATE: dict[str, Any] = {
    "standard_name": "rainfall_rate",
    "long_name": "Rain rate",
    "units": RAIN_RATE_UNITS,
    "valid_min": 0.0,
}


def grid_template(
    y: xr.Variable,
    x: xr.Variable,
    variables: Mapping[str, Mapping[str, Any]],
    attributes: Mapping[str, Any],
    crs: pyproj.CRS | None = None,
    located: Mapping[str, xr.Variable] | None = None,
) -> xr.Dataset:
    """Return a dataset without frames: variables float32 `(0, y, x)` with their attributes, y, x and the CRS if any.

    `located` are latitude and longitude `(y, x)` of the cells of a grid whose axes do not tell them.
    """
    coords: dict[str, Any] = {Y: y, X: x, **(located or {})}
    mapping = {} if crs is None else {"grid_mapping": GRID_MAPPING}
    if crs is not None:
        coords[GRID_MAPPING] = ((), np.int32(0), _cf_attributes(crs))
    empty = np.empty((0, y.size, x.size), np.float32)
    data = {name: ((TIME, Y, X), empty, {**attrs, **mapping}) for name, attrs in variables.items()}
    return xr.Dataset(data, coords, dict(attributes))


@lru_cache(maxsize=64)
def cf_crs(attributes: str) -> pyproj.CRS:
    """Return the CRS of a CF grid mapping, its attributes as JSON: slow to build, and the same for every file."""
    return pyproj.CRS.from_cf(json.loads(attributes))


@lru_cache(maxsize=64)
def _cf_attributes(crs: pyproj.CRS) -> dict[str, Any]:
    attributes: dict[str, Any] = crs.to_cf()
    return attributes


def fields(
    times: np.ndarray,
    values: Mapping[str, np.ndarray],
    units: Mapping[str, str],
    refused: Mapping[str, np.ndarray] | None = None,
) -> xr.Dataset:
    """Return frames in memory: each variable float32 `(time, y, x)` with its units.

    `refused` is the number of values `(time,)` that were none, for variables of which that is known.
    """
    data: dict[str, Any] = {
        name: ((TIME, Y, X), array.astype(np.float32), {"units": units[name]}) for name, array in values.items()
    }
    data |= {refused_name(name): (TIME, counts) for name, counts in (refused or {}).items()}
    return xr.Dataset(data, {TIME: times})


def cells(grid: xr.Dataset, crop: Crop | None, where: str) -> tuple[slice, slice]:
    """Return the rows and columns to read; raise `InputError` when the crop leaves the grid of `where`."""
    if crop is None:
        return slice(0, grid.sizes[Y]), slice(0, grid.sizes[X])
    for axis, (start, stop) in ((Y, crop.y), (X, crop.x)):
        if stop > grid.sizes[axis]:
            raise InputError(
                f"source.crop.{axis} is [{start}, {stop}], but the grid of {where} has {grid.sizes[axis]} cells along "
                f"{axis}: choose a stop of at most {grid.sizes[axis]}"
            )
    return slice(*crop.y), slice(*crop.x)


def target_grid(grid: xr.Dataset, crop: Crop | None, coarsen: int, where: str) -> xr.Dataset:
    """Return the template after crop and coarsening; y and x become block means."""
    if grid.sizes[Y] * grid.sizes[X] > MOST_CELLS:
        raise InputError(f"{where}: {grid.sizes[Y]} x {grid.sizes[X]} cells, expected at most {MOST_CELLS}")
    rows, columns = cells(grid, crop, where)
    cropped = grid.isel({Y: rows, X: columns})
    for axis in (Y, X):
        if cropped.sizes[axis] < coarsen:
            raise InputError(
                f"source.coarsen is {coarsen}, but only {cropped.sizes[axis]} cells are left along {axis} of {where}: "
                "choose a smaller factor or a larger crop"
            )
    y, x = (_coarse_coordinate(cropped[axis].variable, coarsen) for axis in (Y, X))
    data = {
        name: ((TIME, Y, X), np.empty((0, y.size, x.size), np.float32), cropped[name].attrs)
        for name in field_names(grid)
    }
    extra = {GRID_MAPPING: grid[GRID_MAPPING].variable} if GRID_MAPPING in grid.coords else {}
    for name in (LATITUDE, LONGITUDE):
        if name in cropped.coords:
            extra[name] = _coarse_degrees(cropped[name].variable, coarsen)
    return xr.Dataset(data, {Y: y, X: x, **extra}, grid.attrs)


def block_mean(values: np.ndarray, size: int) -> np.ndarray:
    """Return `(t, y, x)` as means over blocks of size x size cells.

    NaN cells are left out of a block's mean; a block with less than half of its cells valid is NaN. Rows and columns
    beyond the last whole block are cut off.
    """
    if size == 1:
        return values
    height, width = (length // size * size for length in values.shape[1:])
    blocks = rearrange(values[:, :height, :width], "t (y i) (x j) -> t y x (i j)", i=size, j=size)
    valid = np.isfinite(blocks)
    count = valid.sum(axis=-1)
    total = np.where(valid, blocks, 0).sum(axis=-1, dtype=np.float64)
    mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=2 * count >= size * size)
    return np.asarray(mean, np.float32)


def _coarse_degrees(degrees: xr.Variable, size: int) -> xr.Variable:
    """Return latitudes or longitudes `(y, x)` as means over blocks, about 180 degrees too."""
    height, width = (length // size * size for length in degrees.shape)
    blocks = rearrange(degrees.values[:height, :width], "(y i) (x j) -> y x (i j)", i=size, j=size)
    beside = (blocks - blocks[..., :1] + 180) % 360 - 180
    return xr.Variable((Y, X), blocks[..., 0] + beside.mean(axis=-1), degrees.attrs)


def _coarse_coordinate(coordinate: xr.Variable, size: int) -> xr.Variable:
    if size == 1:
        return coordinate
    kept = coordinate.values[: coordinate.size // size * size]
    return xr.Variable(coordinate.dims, rearrange(kept, "(n i) -> n i", i=size).mean(axis=1), coordinate.attrs)
