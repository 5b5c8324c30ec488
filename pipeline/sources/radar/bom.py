"""Bureau of Meteorology rain accumulations: NetCDF (CF-1.7), one field `precipitation` in kg m-2 (that is mm).

The time stamp is the end of the accumulation (`valid_time`); rates are means from `start_time` to it.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import h5py
import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.files import Header
from fieldcast.pipeline.sources.radar.hdf5 import attribute, opened
from fieldcast.pipeline.sources.template import RAIN_RATE, cf_crs, grid_template

WHAT = "a BOM accumulation (NetCDF with the variable precipitation)"
TIME_UNITS = "seconds since 1970-01-01 00:00:00 UTC"
UNITS = ("kg m-2", "mm")
KEPT = ("title", "institution", "licence", "station_id", "station_name")
HDF5_OWN = ("CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST")


def header(path: str, options: RadarOptions) -> Header:
    """Return time and grid of one file; raise `InputError` when it is broken or holds no accumulation."""
    with opened(path, WHAT) as file:
        units = attribute(file["precipitation"], "units")
        if units not in UNITS:
            raise InputError(
                f"{path}: 'precipitation' has units '{units}', expected {' or '.join(UNITS)}: "
                "keep archives of different units apart"
            )
        _, end = _period(path, file)
        return Header(path, np.array([end], "datetime64[ns]"), _template(file))


def rate(path: str, y: slice, x: slice, options: RadarOptions) -> np.ndarray:
    """Return the mean rain rate of the file's period in mm/h, (y, x) float32, NaN where nothing is measured."""
    with opened(path, WHAT) as file:
        field = file["precipitation"]
        counts = field[y, x]
        gain = float(attribute(field, "scale_factor")) if "scale_factor" in field.attrs else 1.0
        offset = float(attribute(field, "add_offset")) if "add_offset" in field.attrs else 0.0
        absent = attribute(field, "_FillValue") if "_FillValue" in field.attrs else None
        start, end = _period(path, file)
    hours = (end - start).total_seconds() / 3600
    millimetres = gain * counts.astype(np.float64) + offset
    missing = np.zeros(counts.shape, bool) if absent is None else counts == absent
    return np.where(missing, np.nan, millimetres / hours).astype(np.float32)


def _period(path: str, file: h5py.File) -> tuple[datetime, datetime]:
    moments = []
    for name in ("start_time", "valid_time"):
        units = attribute(file[name], "units")
        if units != TIME_UNITS:
            raise InputError(f"{path}: '{name}' has units '{units}', expected '{TIME_UNITS}'")
        moments.append(datetime(1970, 1, 1) + timedelta(seconds=int(file[name][()])))
    start, end = moments
    if start >= end:
        raise InputError(
            f"{path}: accumulation from {start} to {end}, expected a start before its end: replace the file"
        )
    return start, end


def _template(file: h5py.File) -> xr.Dataset:
    y, x = (xr.Variable(axis, file[name][:], _cf(file[name])) for axis, name in ((Y, "y"), (X, "x")))
    attributes = {name: attribute(file, name) for name in KEPT if name in file.attrs}
    mapping = attribute(file["precipitation"], "grid_mapping")
    crs = cf_crs(json.dumps(_cf(file[mapping])))
    return grid_template(y, x, {"rain_rate": {**RAIN_RATE, "cell_methods": "time: mean"}}, attributes, crs)


def _cf(variable: h5py.Dataset) -> dict[str, Any]:
    """Return the CF attributes, without HDF5's own and without bounds, which are not kept."""
    names = [name for name in variable.attrs if name not in (*HDF5_OWN, "bounds") and not name.startswith("_")]
    return {name: attribute(variable, name) for name in names}
