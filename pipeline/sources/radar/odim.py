"""ODIM HDF5 composites of OPERA and of weather services: rain rate, accumulation or reflectivity.

Described in EUMETNET OPERA, "ODIM_H5", versions 2.0 to 2.4. An attribute holds for all that is below it, unless it is
given again there: quantity and packing stand in `/dataset1/what` (OPERA in 2018) or `/dataset1/data1/what` (OPERA in
2024, RMI), scales and sizes of the grid in `/where` or `/dataset1/where`. `nodata` is outside the radars' range;
`undetect` was measured and is no echo, which reads as 0 mm/h.

The time stamp is the nominal time (`/what`), of an accumulation the end of its period. Rain rate of a reflectivity
is Z = a R^b with a = 200, b = 1.6 (Marshall, Palmer 1948, J. Meteor. 5) unless the options give others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import h5py
import numpy as np
import pyproj
import xarray as xr
from pyproj.exceptions import ProjError

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.files import Header, one_line
from fieldcast.pipeline.sources.radar.hdf5 import attribute, opened
from fieldcast.pipeline.sources.radar.reflectivity import rain_rate
from fieldcast.pipeline.sources.template import RAIN_RATE, grid_template

WHAT = "an ODIM composite (HDF5 with dataset1/data1/data)"
QUANTITY = "RATE"  # mm/h, unless the options name another: ACRR in mm, or DBZH in dBZ
Z_R = (200.0, 1.6)
OBJECTS = ("COMP", "IMAGE")
CORNERS = {"LL": (0, 0), "LR": (0, 1), "UL": (1, 0), "UR": (1, 1)}  # rows and columns of grids away from LL
DATASET, DATA = re.compile(r"dataset\d+"), re.compile(r"data\d+")


class Field(NamedTuple):
    """An array of the wanted quantity in an open file, and the groups whose attributes hold for it, nearest first."""

    path: str
    data: h5py.Dataset
    groups: tuple[h5py.Group, ...]

    def attribute(self, kind: str, name: str, default: Any = None) -> Any:
        """Return an attribute of the nearest group `kind`, `what` or `where`, that has it.

        Raise `InputError` where none has it and there is no default.
        """
        for group in self.groups:
            if kind in group and name in group[kind].attrs:
                return attribute(group[kind], name)
        if default is None:
            raise InputError(f"{self.path}: no attribute '{name}' in any '{kind}', expected {WHAT}: replace the file")
        return default

    def moment(self, side: str) -> datetime:
        """Return the time of `side`: 'start' or 'end' of the period, or '' for the nominal time of the file."""
        text = "".join(str(self.attribute("what", f"{side}{name}")) for name in ("date", "time"))
        try:
            return datetime.strptime(text, "%Y%m%d%H%M%S")
        except ValueError as error:
            raise InputError(f"{self.path}: {side}date and {side}time are '{text}', expected yyyymmddHHMMSS") from error

    def hours(self) -> float:
        """Return the length of an accumulation; raise `InputError` for one that ends before it starts."""
        start, end = self.moment("start"), self.moment("end")
        if start >= end:
            raise InputError(
                f"{self.path}: accumulation from {start} to {end}, expected a start before its end: replace the file"
            )
        return (end - start).total_seconds() / 3600


def header(path: str, options: RadarOptions) -> Header:
    """Return time and grid of one file; raise `InputError` when it is broken or lacks the wanted quantity."""
    with opened(path, WHAT) as file:
        field = _field(path, file, options)
        time = field.moment("end" if _is_sum(options) else "")
        return Header(path, np.array([time], "datetime64[ns]"), _template(field, options))


def rate(path: str, y: slice, x: slice, options: RadarOptions) -> np.ndarray:
    """Return the rain rate in mm/h, (y, x) float32, NaN outside the radars' range."""
    with opened(path, WHAT) as file:
        field = _field(path, file, options)
        counts = field.data[y, x].astype(np.float64)
        gain, offset = (float(field.attribute("what", name, default)) for name, default in (("gain", 1), ("offset", 0)))
        absent, dry = (float(field.attribute("what", name, np.nan)) for name in ("nodata", "undetect"))
        hours = field.hours() if _is_sum(options) else 1.0
    values = np.where(counts == absent, np.nan, gain * counts + offset)
    if options.quantity == "DBZH":
        values = rain_rate(values, options.z_r or Z_R)
    values[(counts == dry) & (counts != absent)] = 0.0
    return (values / hours).astype(np.float32)


def _is_sum(options: RadarOptions) -> bool:
    return options.quantity == "ACRR"


def _field(path: str, file: h5py.File, options: RadarOptions) -> Field:
    """Return the first array of the wanted quantity; raise `InputError` where there is none, or no composite."""
    kind = attribute(file["what"], "object")
    if kind not in OBJECTS:
        raise InputError(f"{path}: what/object is '{kind}', expected {' or '.join(OBJECTS)}: take a composite")
    wanted, found = options.quantity or QUANTITY, []
    for field in _fields(path, file):
        quantity = str(field.attribute("what", "quantity"))
        if quantity == wanted:
            return field
        found.append(quantity)
    raise InputError(
        f"{path}: no quantity {wanted}, found {', '.join(found) or 'none'}: set source.quantity to RATE, ACRR or DBZH, "
        "and keep archives of different quantities apart"
    )


def _fields(path: str, file: h5py.File) -> Iterator[Field]:
    for _, dataset in _numbered(file, DATASET):
        for _, data in _numbered(dataset, DATA):
            yield Field(path, data["data"], (data, dataset, file))


def _numbered(group: h5py.Group, name: re.Pattern[str]) -> list[tuple[int, h5py.Group]]:
    """Return the groups of such names by their numbers, from the lowest."""
    found = [key for key in group if name.fullmatch(key)]
    return sorted((int(re.sub(r"\D", "", key)), group[key]) for key in found)


def _template(field: Field, options: RadarOptions) -> xr.Dataset:
    crs = _crs(field)
    (left, bottom), (dx, dy) = _corner(field, crs), _scales(field)
    height, width = field.data.shape
    y = bottom + (height - np.arange(height) - 0.5) * dy
    x = left + (np.arange(width) + 0.5) * dx
    attributes = {**RAIN_RATE, "cell_methods": "time: mean"} if _is_sum(options) else {**RAIN_RATE}
    return grid_template(
        xr.Variable(Y, y, {"standard_name": "projection_y_coordinate", "units": "m"}),
        xr.Variable(X, x, {"standard_name": "projection_x_coordinate", "units": "m"}),
        {"rain_rate": attributes},
        {"source": str(field.attribute("what", "source", "unknown"))},
        crs,
    )


def _crs(field: Field) -> pyproj.CRS:
    text = str(field.attribute("where", "projdef"))
    try:
        crs = pyproj.CRS.from_user_input(text)
    except ProjError as error:
        raise InputError(f"{field.path}: where/projdef: {one_line(error)}: replace the file") from None
    if not crs.is_projected or crs.axis_info[0].unit_name != "metre":
        raise InputError(f"{field.path}: where/projdef is '{text}', expected a projection in metres: regrid the file")
    return crs


def _scales(field: Field) -> tuple[float, float]:
    return float(field.attribute("where", "xscale")), float(field.attribute("where", "yscale"))


def _corner(field: Field, crs: pyproj.CRS) -> tuple[float, float]:
    """Return the outer lower left corner, to the centimetre: degrees are written with few digits.

    Raise `InputError` where another corner of the file is not where size and scales have it, or the sizes differ.
    """
    height, width = field.data.shape
    sizes = int(field.attribute("where", "ysize", height)), int(field.attribute("where", "xsize", width))
    if sizes != (height, width):
        raise InputError(f"{field.path}: where has ysize, xsize {sizes}, the array {height}, {width}: replace the file")
    project, (dx, dy) = pyproj.Proj(crs), _scales(field)
    left, bottom = project(float(field.attribute("where", "LL_lon")), float(field.attribute("where", "LL_lat")))
    for corner, (rows, columns) in CORNERS.items():
        longitude, latitude = (float(field.attribute("where", f"{corner}_{name}", np.nan)) for name in ("lon", "lat"))
        if np.isnan(longitude) or np.isnan(latitude):
            continue
        (x, y), (east, north) = project(longitude, latitude), (left + columns * width * dx, bottom + rows * height * dy)
        if not (abs(x - east) < dx / 2 and abs(y - north) < dy / 2):
            raise InputError(
                f"{field.path}: {corner} of where is at x {x:.0f}, y {y:.0f} m, expected {east:.0f}, {north:.0f} m by "
                "LL, size and scale: replace the file"
            )
    return round(left, 2), round(bottom, 2)
