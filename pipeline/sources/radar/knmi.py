"""KNMI composites: HDF5, precipitation accumulated over a few minutes, in hundredths of a millimetre.

Described in KNMI, "HDF5 Data Format Specification", version 3.5. The time stamp is the end of the accumulation.
"""

from __future__ import annotations

import re
from datetime import datetime

import h5py
import numpy as np
import pyproj
import xarray as xr

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.files import Header
from fieldcast.pipeline.sources.radar.hdf5 import attribute, opened
from fieldcast.pipeline.sources.template import RAIN_RATE, grid_template

WHAT = "a KNMI composite (HDF5 with image1/image_data)"
QUANTITY = "ACCUMULATED_PRECIPITATION_[MM]"
FORMULA = re.compile(r"^GEO\s*=\s*([-+.\deE]+)\s*\*\s*PV\s*([-+]\s*[.\d]+(?:[eE][-+]?\d+)?)?$")


def header(path: str, options: RadarOptions) -> Header:
    """Return time and grid of one file; raise `InputError` when it is broken or holds no accumulation in mm."""
    with opened(path, WHAT) as file:
        image, data = file["image1"], file["image1/image_data"]
        quantity = attribute(image, "image_geo_parameter")
        if quantity != QUANTITY:
            raise InputError(
                f"{path}: image1 image_geo_parameter is '{quantity}', expected '{QUANTITY}': "
                "keep archives of different units apart"
            )
        _, end = _period(path, file)
        return Header(path, np.array([end], "datetime64[ns]"), _template(file["geographic"], data.shape))


def rate(path: str, y: slice, x: slice, options: RadarOptions) -> np.ndarray:
    """Return the mean rain rate of the file's period in mm/h, (y, x) float32, NaN outside the radars' range."""
    with opened(path, WHAT) as file:
        counts = file["image1/image_data"][y, x]
        calibration = file["image1/calibration"]
        gain, offset = _calibration(path, str(attribute(calibration, "calibration_formulas")))
        absent = [attribute(calibration, f"calibration_{name}") for name in ("missing_data", "out_of_image")]
        start, end = _period(path, file)
    hours = (end - start).total_seconds() / 3600
    millimetres = gain * counts.astype(np.float64) + offset
    return np.where(np.isin(counts, absent), np.nan, millimetres / hours).astype(np.float32)


def _calibration(path: str, formula: str) -> tuple[float, float]:
    match = FORMULA.match(formula)
    if not match:
        raise InputError(
            f"{path}: calibration_formulas is '{formula}', expected 'GEO=<gain>*PV+<offset>': correct source.format"
        )
    return float(match[1]), float((match[2] or "0").replace(" ", ""))


def _period(path: str, file: h5py.File) -> tuple[datetime, datetime]:
    overview = file["overview"]
    start, end = (_moment(path, str(attribute(overview, f"product_datetime_{side}"))) for side in ("start", "end"))
    if start >= end:
        raise InputError(
            f"{path}: accumulation from {start} to {end}, expected a start before its end: replace the file"
        )
    return start, end


def _moment(path: str, text: str) -> datetime:
    try:
        return datetime.strptime(text, "%d-%b-%Y;%H:%M:%S.%f")
    except ValueError as error:
        raise InputError(f"{path}: product_datetime is '{text}', expected '26-AUG-2010;00:05:00.000'") from error


def _template(geographic: h5py.Group, shape: tuple[int, int]) -> xr.Dataset:
    columns, rows = attribute(geographic, "geo_column_offset"), attribute(geographic, "geo_row_offset")
    width, height = attribute(geographic, "geo_pixel_size_x"), attribute(geographic, "geo_pixel_size_y")
    y = (rows * np.sign(height) * abs(height)) + (np.arange(shape[0]) + 0.5) * height
    x = columns * width + (np.arange(shape[1]) + 0.5) * width
    proj4 = str(attribute(geographic["map_projection"], "projection_proj4_params"))
    return grid_template(
        xr.Variable(Y, y, {"standard_name": "projection_y_coordinate", "units": "km"}),
        xr.Variable(X, x, {"standard_name": "projection_x_coordinate", "units": "km"}),
        {"rain_rate": {**RAIN_RATE, "cell_methods": "time: mean"}},
        {"institution": "KNMI", "title": str(attribute(geographic.parent["image1"], "image_product_name"))},
        _crs(proj4),
    )


def _crs(proj4: str) -> pyproj.CRS:
    """Return the CRS in metres: the files give the Earth's axes in km, which PROJ would read as metres."""
    in_km = r"\+([ab])=(\d{4}(?:\.\d+)?)(?=\s|$)"
    return pyproj.CRS.from_proj4(re.sub(in_km, lambda axis: f"+{axis[1]}={float(axis[2]) * 1000:.10g}", proj4))
