"""The NetCDF file of one live frame: the same bytes for the same frame, wherever and whenever it arrives."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.schema import CONVENTIONS, HORIZONTAL, TIME, TIME_UNITS, X, Y, field_names
from fieldcast.pipeline.datasets.signature import signature_of
from fieldcast.pipeline.datasets.times import to_numpy
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.feed.index import Statistics

COMPRESSION_LEVEL = 4

Values = dict[str, np.ndarray]


def encode(time: datetime, values: Mapping[str, np.ndarray], grid: xr.Dataset) -> bytes:
    """Return one frame, (y, x) by variable, as the content of a NetCDF file on `grid`."""
    data = {name: ((TIME, Y, X), values[name][None], grid[name].attrs) for name in sorted(values)}
    coords = {name: grid[name].variable for name in HORIZONTAL if name in grid.coords}
    moment = (TIME, np.array([to_numpy(time)]), {"standard_name": "time", "axis": "T"})
    dataset = xr.Dataset(data, {TIME: moment, **coords}, {"Conventions": CONVENTIONS, **grid.attrs}).drop_encoding()
    encoding: dict[str, dict[str, Any]] = {
        name: {"zlib": True, "complevel": COMPRESSION_LEVEL, "chunksizes": (1, *values[name].shape)} for name in values
    }
    encoding |= {TIME: {"units": TIME_UNITS, "dtype": "int64"}, Y: {"_FillValue": None}, X: {"_FillValue": None}}
    return bytes(dataset.to_netcdf(None, engine="h5netcdf", encoding=encoding))


def fields_of(content: bytes, names: list[str], path: Path) -> list[np.ndarray]:
    """Return variables (y, x) of a frame; raise `InputError` about `path` for one that it lacks."""
    with h5py.File(io.BytesIO(content), "r") as file:
        if unknown := [name for name in names if name not in file]:
            present = ", ".join(sorted(file))
            raise InputError(f"{path}: no variable '{unknown[0]}', found {present}: correct live.source")
        return [np.asarray(file[name][0]) for name in names]


def template_of(content: bytes) -> xr.Dataset:
    """Return a frame's variables (0, y, x), y, x, CRS and attributes."""
    with xr.open_dataset(io.BytesIO(content), engine="h5netcdf", decode_timedelta=False) as stored:
        dataset = stored.isel({TIME: slice(0, 0)}).drop_vars(TIME).load().drop_encoding()
    for name in dataset.variables:
        dataset[name].attrs = _plain(dataset[name].attrs)
    return dataset.assign_attrs(_plain(dataset.attrs))


def grid_of(template: xr.Dataset) -> str:
    """Return units and grid as JSON, by which the index knows the frames without opening one."""
    signature = signature_of(template, field_names(template), np.timedelta64(1, "m"), np.datetime64(0, "s")).as_dict()
    return json.dumps(
        {name: signature[name] for name in ("units", Y, X, "crs", "located") if name in signature}, sort_keys=True
    )


def statistics_of(values: Mapping[str, np.ndarray]) -> Statistics:
    """Return share of valid cells, minimum, maximum and mean of each variable; None where no cell is valid."""
    statistics: Statistics = {}
    for name, field in sorted(values.items()):
        valid = field[np.isfinite(field)]
        low, high, mean = (valid.min(), valid.max(), valid.mean(dtype=np.float64)) if valid.size else (None,) * 3
        rest = {"min": low, "max": high, "mean": mean}
        statistics[name] = {"valid_share": valid.size / field.size}
        statistics[name] |= {key: None if value is None else float(value) for key, value in rest.items()}
    return statistics


def digest(values: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 of the values of a frame."""
    total = hashlib.sha256()
    for name in sorted(values):
        total.update(name.encode())
        total.update(np.ascontiguousarray(values[name], "<f4").tobytes())
    return total.hexdigest()


def _plain(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        name: value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        for name, value in attributes.items()
    }
