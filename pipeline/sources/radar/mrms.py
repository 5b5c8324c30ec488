"""MRMS composites of NOAA: rain rate over the United States in GRIB2, plain or gzip, one field a file.

ecCodes knows neither name nor units of the field, which is of NOAA's own table: discipline 209, category 6, number 1 is
the precipitation rate in mm/h (NSSL, "MRMS GRIB2 tables"). -3 is no coverage and -1 a missing value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import grib
from fieldcast.pipeline.sources.files import Header
from fieldcast.pipeline.sources.radar.compressed import read_bytes
from fieldcast.pipeline.sources.template import RAIN_RATE, grid_template

WHAT = "an MRMS rain rate (GRIB2 with one message)"
PARAMETER = {"discipline": 209, "parameterCategory": 6, "parameterNumber": 1}
NO_VALUE = (-1.0, -3.0)


def header(path: str, options: RadarOptions) -> Header:
    """Return time and grid of one file; raise `InputError` when it is broken or holds another field."""
    with _message(path) as handle:
        time = grib.message_of(handle, 1).time
        y, x, crs = grib.grid_of(path, handle)
    attributes = {"institution": "US NOAA Office of Oceanic and Atmospheric Research"}
    return Header(
        path, np.array([time], "datetime64[ns]"), grid_template(y, x, {"rain_rate": {**RAIN_RATE}}, attributes, crs)
    )


def rate(path: str, y: slice, x: slice, options: RadarOptions) -> np.ndarray:
    """Return the rain rate in mm/h, (y, x) float32, NaN where the radars do not reach and where a value is missing."""
    with _message(path) as handle:
        field = grib.field_of(handle)[y, x]
    return np.where(np.isin(field, NO_VALUE), np.nan, field).astype(np.float32)


@contextmanager
def _message(path: str) -> Iterator[Any]:
    """Yield the one message of a file; raise `InputError` where it is cut, or another field."""
    import eccodes

    raw = read_bytes(path, WHAT)
    if raw[:4] != b"GRIB":
        raise InputError(f"{path}: no GRIB file, expected {WHAT}: correct source.path or source.format")
    handle = eccodes.codes_new_from_message(raw)
    try:
        if (length := int(grib.get(handle, "totalLength"))) != len(raw):
            raise InputError(f"{path}: {len(raw)} bytes, expected one message of {length}: replace the file")
        found = {key: grib.get(handle, key) for key in PARAMETER}
        if found != PARAMETER:
            raise InputError(f"{path}: the field is {found}, expected {PARAMETER}: keep archives of a product apart")
        yield handle
    finally:
        eccodes.codes_release(handle)
