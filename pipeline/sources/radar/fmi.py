"""FMI composites: PGM images (plain or gzip) of reflectivity, one byte a cell.

dBZ = (value - 64) / 2; 255 is outside the radars' range; 0 is no echo and reads as 0 mm/h. Rain rate by
Z = a R^b with a = 223, b = 1.53 (Leinonen et al. 2012, J. Appl. Meteor. Clim. 51, rain in Finland).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyproj
import xarray as xr

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.files import Header
from fieldcast.pipeline.sources.radar.compressed import read_bytes
from fieldcast.pipeline.sources.radar.reflectivity import rain_rate
from fieldcast.pipeline.sources.template import RAIN_RATE, grid_template

WHAT = "an FMI composite (PGM with a commented header)"
Z_R = (223.0, 1.53)
NO_ECHO, OUTSIDE = 0, 255
EARTH_RADIUS_M = 6_371_288
PARAMETER = "CorrectedReflectivity"


@dataclass(frozen=True)
class Image:
    """One PGM: the entries of its comments, and its bytes (y, x), first row in the north."""

    path: str
    entries: dict[str, str]
    values: np.ndarray

    def entry(self, name: str) -> str:
        """Return a header entry; raise `InputError` when the file lacks it."""
        if name not in self.entries:
            raise InputError(f"{self.path}: no entry '{name}' in the header, expected {WHAT}: correct source.format")
        return self.entries[name]

    def numbers(self, name: str) -> list[float]:
        """Return a header entry as numbers."""
        try:
            return [float(word) for word in self.entry(name).split()]
        except ValueError as error:
            raise InputError(f"{self.path}: header entry '{name}' is '{self.entry(name)}', expected numbers") from error


def header(path: str, options: RadarOptions) -> Header:
    """Return time and grid of one file; raise `InputError` when it is broken or holds no reflectivity."""
    image = read_image(path)
    if image.entry("param") != PARAMETER:
        raise InputError(
            f"{path}: param is '{image.entry('param')}', expected '{PARAMETER}': keep archives of different units apart"
        )
    try:
        time = datetime.strptime(image.entry("obstime"), "%Y%m%d%H%M")
    except ValueError as error:
        raise InputError(f"{path}: obstime is '{image.entry('obstime')}', expected 'yyyymmddHHMM'") from error
    return Header(path, np.array([time], "datetime64[ns]"), _template(image))


def rate(path: str, y: slice, x: slice, options: RadarOptions) -> np.ndarray:
    """Return the rain rate in mm/h, (y, x) float32, NaN outside the radars' range."""
    table = rain_rate((np.arange(256) - 64) / 2, options.z_r or Z_R)
    table[NO_ECHO], table[OUTSIDE] = 0.0, np.nan
    return np.asarray(table.astype(np.float32)[read_image(path).values[y, x]])


def read_image(path: str) -> Image:
    """Return the image; raise `InputError` when it is no binary PGM or has fewer bytes than its header says."""
    raw = read_bytes(path, WHAT)
    top = re.match(rb"P5\s+((?:#[^\n]*\n\s*)*)(\d+)\s+(\d+)\s+255\s", raw)
    if not top:
        raise InputError(f"{path}: no binary PGM with 8 bits, expected {WHAT}: correct source.path or source.format")
    width, height = int(top[2]), int(top[3])
    if len(raw) - top.end() < width * height:
        raise InputError(
            f"{path}: truncated file, {len(raw) - top.end()} image bytes, expected {width * height}: replace the file"
        )
    values = np.frombuffer(raw, np.uint8, width * height, top.end()).reshape(height, width)
    return Image(path, _entries(top[1].decode("ascii", "replace")), values)


def _entries(comments: str) -> dict[str, str]:
    lines = [line.lstrip("# ").split(maxsplit=1) for line in comments.splitlines()]
    return {words[0]: words[1] for words in lines if len(words) == 2}


def _template(image: Image) -> xr.Dataset:
    height, width = image.values.shape
    if image.entry("type") != "stereographic":
        raise InputError(f"{image.path}: projection type is '{image.entry('type')}', expected 'stereographic'")
    crs = pyproj.CRS.from_dict(
        {
            "proj": "stere",
            "lat_0": image.numbers("centrallatitude")[0],
            "lat_ts": image.numbers("truelatitude")[0],
            "lon_0": image.numbers("centrallongitude")[0],
            "R": EARTH_RADIUS_M,
        }
    )
    longitude, latitude = image.numbers("bottomleft")
    left, bottom = pyproj.Proj(crs)(longitude, latitude)
    dx, dy = image.numbers("metersperpixel_x")[0], image.numbers("metersperpixel_y")[0]
    y = bottom + (height - np.arange(height) - 0.5) * dy
    x = left + (np.arange(width) + 0.5) * dx
    return grid_template(
        xr.Variable(Y, y, {"standard_name": "projection_y_coordinate", "units": "m"}),
        xr.Variable(X, x, {"standard_name": "projection_x_coordinate", "units": "m"}),
        {"rain_rate": {**RAIN_RATE}},
        {"institution": "Finnish Meteorological Institute"},
        crs,
    )
