"""MeteoSwiss composites: GIF of classes of rain, accumulated over some minutes.

The files tell their time, scale and period in a comment, and nothing of their grid: it is that of all Swiss composites,
in the national coordinates LV03 (swisstopo, "Formulas and constants for the calculation of the Swiss conformal
cylindrical projection"). Class c of 2 to 250 is (10^((c - 71.5) / 20) / 316)^(1 / 1.5) mm, by the Z-R relation of
MeteoSwiss (Germann et al. 2006, Q. J. R. Meteorol. Soc. 132); 0 and 1 are dry; what is above is outside the radars'
range or no class, and missing. The time stamp is the end of the accumulation.
"""

from __future__ import annotations

import re
from datetime import datetime

import numpy as np
import pyproj
import xarray as xr
from PIL import Image, UnidentifiedImageError

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.files import Header
from fieldcast.pipeline.sources.radar.reflectivity import rain_rate
from fieldcast.pipeline.sources.template import RAIN_RATE, grid_template

WHAT = "a MeteoSwiss composite (GIF with a comment)"
SCALE = "mmh2LASSEN8bitmm_mn"
ENTRY = re.compile(r"(\w+)=(\S+)")
Z_R = (316.0, 1.5)
LOWEST, HIGHEST = 2, 250  # classes of rain
ROWS, COLUMNS = 640, 710  # of 1 km
WEST_M, NORTH_M = 255_000, 480_000  # outer edges
CRS = {
    **{"proj": "somerc", "lat_0": 46.9524055555556, "lon_0": 7.43958333333333, "x_0": 600_000, "y_0": 200_000},
    **{"ellps": "bessel", "towgs84": "674.374,15.056,405.346"},
}


def header(path: str, options: RadarOptions) -> Header:
    """Return time and grid of one file; raise `InputError` when it is broken or has another scale."""
    with _opened(path) as image:
        entries = _entries(path, image)
    try:
        time = datetime.strptime(entries["PRDT"][-9:], "%y%j%H%M")
    except ValueError as error:
        raise InputError(f"{path}: PRDT is '{entries['PRDT']}', expected a product and 'yyjjjHHMM'") from error
    return Header(path, np.array([time], "datetime64[ns]"), _template())


def rate(path: str, y: slice, x: slice, options: RadarOptions) -> np.ndarray:
    """Return the mean rain rate of the file's period in mm/h, (y, x) float32, NaN outside the radars' range."""
    with _opened(path) as image:
        hours = _minutes(path, _entries(path, image)) / 60
        classes = np.asarray(image)[y, x]
    millimetres = rain_rate((np.arange(256) - 71.5) / 2, Z_R)
    millimetres[:LOWEST], millimetres[HIGHEST + 1 :] = 0.0, np.nan
    return np.asarray((millimetres / hours).astype(np.float32)[classes])


def _opened(path: str) -> Image.Image:
    """Return the image, not decoded; raise `InputError` where it is no GIF of the grid's size."""
    try:
        image = Image.open(path, formats=["GIF"])
    except UnidentifiedImageError as error:
        raise InputError(f"{path}: no GIF, expected {WHAT}: correct source.path or source.format") from error
    if image.size != (COLUMNS, ROWS) or image.mode != "P":
        image.close()
        raise InputError(
            f"{path}: {image.size[1]} x {image.size[0]} cells, mode {image.mode}, expected {ROWS} x {COLUMNS} classes, "
            "mode P: correct source.format"
        )
    return image


def _entries(path: str, image: Image.Image) -> dict[str, str]:
    """Return the entries of the comment; raise `InputError` where one lacks, or the scale is another."""
    comment = image.info.get("comment", b"")
    entries = dict(ENTRY.findall(comment.decode("ascii", "replace")))
    for name in ("PRDT", "SCALE", "ACCUm"):
        if name not in entries:
            raise InputError(f"{path}: no entry '{name}' in the comment, expected {WHAT}: correct source.format")
    if entries["SCALE"] != SCALE:
        raise InputError(
            f"{path}: SCALE is '{entries['SCALE']}', expected '{SCALE}': keep archives of different units apart"
        )
    return entries


def _minutes(path: str, entries: dict[str, str]) -> int:
    text = entries["ACCUm"]
    if not text.isdecimal() or int(text) == 0:
        raise InputError(f"{path}: ACCUm is '{text}', expected the minutes of an accumulation: replace the file")
    return int(text)


def _template() -> xr.Dataset:
    y = NORTH_M - 1000 * (np.arange(ROWS) + 0.5)
    x = WEST_M + 1000 * (np.arange(COLUMNS) + 0.5)
    return grid_template(
        xr.Variable(Y, y, {"standard_name": "projection_y_coordinate", "units": "m"}),
        xr.Variable(X, x, {"standard_name": "projection_x_coordinate", "units": "m"}),
        {"rain_rate": {**RAIN_RATE, "cell_methods": "time: mean"}},
        {"institution": "MeteoSwiss"},
        pyproj.CRS.from_dict(CRS),
    )
