"""Geometry of regular grids: units of the axes by all their spellings, spacing in km, area weights and the CRS."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Literal

import numpy as np
import pyproj
import xarray as xr

from fieldcast.pipeline.datasets.schema import GRID_MAPPING, X, Y
from fieldcast.pipeline.errors import InputError

Unit = Literal["metre", "kilometre", "degree"]  # by PROJ's names
SPELLINGS: Mapping[Unit, tuple[str, ...]] = {
    "metre": ("m", "metre", "metres", "meter", "meters"),
    "kilometre": ("km", "kilometre", "kilometres", "kilometer", "kilometers"),
}
ANGLES = ("latitude", "longitude", "grid_latitude", "grid_longitude")  # standard names
UNEVEN = 0.1  # of the mean step, by which steps may differ: latitudes of Gaussian grids do by some hundredths
POLE_SLACK = 1e-3  # degrees, of rounding
KM_PER_DEGREE = 111.195  # of a great circle on a sphere of radius 6371 km
KM_PER_UNIT: Mapping[Unit | None, float] = {"metre": 1e-3, "kilometre": 1.0, "degree": KM_PER_DEGREE}
METRES_PER_UNIT: Mapping[Unit | None, float] = {"metre": 1.0, "kilometre": 1000.0}


def unit_of(units: str) -> Unit | None:
    """Return the unit that the attribute `units` of an axis spells, None for no length and no degrees.

    All that begins with 'degree' is degrees, as in CF: degrees, degrees_north, degree_N, degreesE.
    """
    if units.startswith("degree"):
        return "degree"
    return next((unit for unit, spellings in SPELLINGS.items() if units in spellings), None)


def unit_of_axis(axis: xr.DataArray) -> Unit | None:
    """Return the unit of a coordinate axis, by its units or its standard name; None where it has none that we know."""
    unit = unit_of(str(axis.attrs.get("units", "")))
    return "degree" if unit is None and axis.attrs.get("standard_name") in ANGLES else unit


def check_axis(where: str, name: str, axis: xr.Variable, shown: str | None = None) -> xr.Variable:
    """Return an axis of regular cells with the units that its name tells where it has none; `shown` is the file's name.

    Longitudes across the seam (350 … 10) are made to run on (-10 … 10). Raise `InputError` for centres that are
    missing, there twice, out of order, beyond the poles, or uneven by more than `UNEVEN` of a step, and for radians.
    """
    what = f"{where}: coordinate {shown or name}"
    centres, attributes = np.asarray(axis.values, np.float64), dict(axis.attrs)
    units = str(attributes.get("units", ""))
    if units.lower().startswith("rad"):
        raise InputError(f"{what} has units '{units}', expected degrees: convert it")
    if unit_of(units) is None and attributes.get("standard_name") in ANGLES:
        attributes["units"] = "degrees"
    if not np.isfinite(centres).all():
        wrong = int(np.flatnonzero(~np.isfinite(centres))[0])
        raise InputError(f"{what}: value {wrong + 1} is missing: repair the file")
    is_angle = unit_of(str(attributes.get("units", ""))) == "degree"
    if is_angle and name == X:
        centres = _unwrapped(centres)
    if is_angle and name == Y and np.abs(centres).max(initial=0.0) > 90 + POLE_SLACK:
        raise InputError(f"{what} has {centres[np.abs(centres).argmax()]:g} degrees, expected -90 to 90: correct it")
    steps = np.diff(centres)
    if steps.size:
        _check_steps(what, centres, steps)
    return xr.Variable(axis.dims, centres, attributes)


def _check_steps(what: str, centres: np.ndarray, steps: np.ndarray) -> None:
    if np.unique(centres).size < centres.size:
        values, counts = np.unique(centres, return_counts=True)
        raise InputError(f"{what} has {values[counts > 1][0]:g} twice: remove one row or column")
    if (steps > 0).any() and (steps < 0).any():
        turn = int(np.flatnonzero(np.sign(steps) != np.sign(steps[0]))[0])
        raise InputError(f"{what} is out of order at {centres[turn + 1]:g}: sort the file")
    sizes = np.abs(steps)
    if sizes.max() - sizes.min() > UNEVEN * sizes.mean():
        raise InputError(f"{what} is uneven, steps of {sizes.min():g} to {sizes.max():g}: regrid the file")


def _unwrapped(longitudes: np.ndarray) -> np.ndarray:
    """Return longitudes without a jump of 360 degrees; those that had one lie about Greenwich or the date line."""
    if longitudes.size < 2 or np.abs(np.diff(longitudes)).max() < 180:
        return longitudes
    steady = np.unwrap(longitudes, period=360)
    return np.asarray(steady - 360 * round(float(steady.mean()) / 360))


def in_degrees(grid: xr.Dataset | xr.DataArray) -> bool:
    """Return whether the grid has latitudes as rows and longitudes as columns."""
    return unit_of_axis(grid[Y]) == "degree"


def spacing(centres: np.ndarray) -> float:
    """Return the mean distance of neighbouring centres, positive, in the axis' units; NaN of a single one."""
    return float(abs(centres[-1] - centres[0])) / (centres.size - 1) if centres.size > 1 else float("nan")


def spacing_km(grid: xr.Dataset) -> tuple[float, float]:
    """Return the spacing along y and x in km.

    Degrees are taken on a sphere, the spacing along x at the grid's mean latitude. Raise `InputError` for other units
    and for an axis of fewer than two cells.
    """
    for axis in (Y, X):
        if grid.sizes[axis] < 2:
            raise InputError(f"coordinate '{axis}' has {grid.sizes[axis]} cell(s), expected at least 2")
    units = [unit_of_axis(grid[axis]) for axis in (Y, X)]
    if None in units or units.count("degree") == 1:
        spelled = [str(grid[axis].attrs.get("units", "")) for axis in (Y, X)]
        raise InputError(
            f"coordinates 'y' and 'x' have units {spelled}, expected metres, km or degrees; "
            "without them leave verify.neighbourhoods_km and verify.storm_cells empty"
        )
    y, x = (spacing(grid[axis].values) * KM_PER_UNIT[unit] for axis, unit in zip((Y, X), units, strict=True))
    if units[1] == "degree":
        x *= float(np.cos(np.deg2rad(grid[Y].values.astype(float).mean())))
    return y, x


def row_weights(grid: xr.Dataset) -> np.ndarray | None:
    """Return the area weight of each row `(y,)`: cos latitude over its mean on grids in degrees, else None.

    None means that all cells weigh 1. On a latitude-longitude grid the area of a cell goes with cos latitude.
    """
    if not in_degrees(grid):
        return None
    cosine = np.cos(np.deg2rad(grid[Y].values.astype(np.float64)))
    return np.asarray(cosine / cosine.mean())


def window_cells(neighbourhood_km: float, cell_km: tuple[float, float]) -> tuple[int, int]:
    """Return the window `(y, x)` in cells: the odd numbers nearest to its width, of two the larger."""
    y, x = (max(1, 2 * floor(neighbourhood_km / step / 2) + 1) for step in cell_km)
    return y, x


def crs_wkt(grid: xr.Dataset | xr.DataArray) -> str | None:
    """Return the text of the grid's CRS, None where it has none."""
    mapping = grid[GRID_MAPPING].attrs if GRID_MAPPING in grid.coords else {}
    wkt: str | None = mapping.get("crs_wkt")
    return wkt


def is_rotated(grid: xr.Dataset | xr.DataArray) -> bool:
    """Return whether degrees of a grid are about poles of its own."""
    wkt = crs_wkt(grid)
    return wkt is not None and bool(pyproj.CRS.from_wkt(wkt).is_derived)


def units_of_crs(axis: xr.DataArray, crs: pyproj.CRS) -> float:
    """Return the factor that brings a coordinate axis into the units of its CRS; 1 where the axis has no length."""
    metres = METRES_PER_UNIT.get(unit_of_axis(axis))
    return 1.0 if metres is None else metres / float(crs.axis_info[0].unit_conversion_factor)
