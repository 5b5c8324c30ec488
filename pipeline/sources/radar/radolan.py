"""RADOLAN composites of DWD: rain accumulated over an hour or less, two bytes a cell, plain or gzip.

Described in DWD, "RADOLAN/RADVOR Hoch aufgelöste Niederschlagsanalyse und -vorhersage, Kompositformat". The header is
text that ends in ETX; of each value twelve bits are the amount, by the header's precision, and the others are flags: no
measurement and clutter read as missing; amounts of a radar further away count as they are. The first row lies in the
south. The time stamp is the end of the accumulation.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import NamedTuple

import numpy as np
import pyproj
import xarray as xr

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.files import Header
from fieldcast.pipeline.sources.radar.compressed import read_bytes
from fieldcast.pipeline.sources.template import RAIN_RATE, grid_template

WHAT = "a RADOLAN accumulation (product RW, RY or YW, binary)"
PRODUCTS = ("RW", "RY", "YW")
HEAD = re.compile(  # product, day hour minute, station, month year, bytes, precision, minutes, rows, columns
    rb"([A-Z]{2})(\d{6})\d{5}(\d{4})BY *(\d+)VS[^\x03]*?PR +E-(\d+)INT *(\d+)[^\x03]*?GP *(\d+)x *(\d+)[^\x03]*\x03"
)
AMOUNT, NO_DATA, NEGATIVE, CLUTTER = 0x0FFF, 0x2000, 0x4000, 0x8000
EARTH_RADIUS_M = 6_370_040
CRS = {"proj": "stere", "lat_0": 90, "lat_ts": 60, "lon_0": 10, "R": EARTH_RADIUS_M}
CENTRE = (9.0, 51.0)  # degrees east and north, from which the grids are laid out
LOWER_LEFT_M = {(900, 900): (-450e3, -450e3), (1100, 900): (-370e3, -550e3)}  # rows, columns: from the centre, x and y


class Composite(NamedTuple):
    """A file: end of the accumulation, its hours, precision in mm, and the values (y, x) with their flags."""

    end: datetime
    hours: float
    precision_mm: float
    values: np.ndarray


def header(path: str, options: RadarOptions) -> Header:
    """Return time and grid of one file; raise `InputError` when it is broken or of another product or grid."""
    composite = _read(path)
    return Header(path, np.array([composite.end], "datetime64[ns]"), _template(path, composite.values.shape))


def rate(path: str, y: slice, x: slice, options: RadarOptions) -> np.ndarray:
    """Return the mean rain rate of the file's period in mm/h, (y, x) float32, NaN where nothing is measured."""
    composite = _read(path)
    values = composite.values[y, x]
    amounts = (values & AMOUNT) * np.where(values & NEGATIVE, -1.0, 1.0) * composite.precision_mm
    return np.where(values & (NO_DATA | CLUTTER), np.nan, amounts / composite.hours).astype(np.float32)


def _read(path: str) -> Composite:
    raw = read_bytes(path, WHAT)
    head = HEAD.match(raw)
    if not head:
        raise InputError(f"{path}: no header of RADOLAN, expected {WHAT}: correct source.path or source.format")
    product, clock, month = (head[number].decode() for number in (1, 2, 3))
    declared, digits, minutes, rows, columns = (int(head[number]) for number in (4, 5, 6, 7, 8))
    if product not in PRODUCTS:
        raise InputError(f"{path}: product {product}, expected {', '.join(PRODUCTS)}: keep archives of a product apart")
    if not declared == len(raw) == head.end() + 2 * rows * columns:
        raise InputError(
            f"{path}: {len(raw)} bytes for {rows} x {columns} cells, the header says {declared}: replace the file"
        )
    if minutes == 0:
        raise InputError(f"{path}: an accumulation over 0 minutes: replace the file")
    try:
        end = datetime.strptime(month + clock, "%m%y%d%H%M")
    except ValueError as error:
        raise InputError(f"{path}: the time is '{clock} {month}', expected 'ddHHMM mmyy'") from error
    values = np.frombuffer(raw, "<u2", rows * columns, head.end()).reshape(rows, columns)
    return Composite(end, minutes / 60, 10.0**-digits, values)


def _template(path: str, shape: tuple[int, ...]) -> xr.Dataset:
    if shape not in LOWER_LEFT_M:
        known = ", ".join(f"{rows} x {columns}" for rows, columns in LOWER_LEFT_M)
        raise InputError(f"{path}: {shape[0]} x {shape[1]} cells, expected one of the grids {known}: take another file")
    crs = pyproj.CRS.from_dict(CRS)
    centre = pyproj.Proj(crs)(*CENTRE)
    y, x = (
        xr.Variable(
            axis,
            centre[place] + LOWER_LEFT_M[shape][place] + 1000 * (np.arange(size) + 0.5),
            {"standard_name": f"projection_{axis}_coordinate", "units": "m"},
        )
        for axis, size, place in ((Y, shape[0], 1), (X, shape[1], 0))
    )
    attributes = {**RAIN_RATE, "cell_methods": "time: mean"}
    return grid_template(y, x, {"rain_rate": attributes}, {"institution": "Deutscher Wetterdienst"}, crs)
