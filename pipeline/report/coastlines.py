"""Coastlines of a grid, where the grid says where on Earth it is; decision 14 says where the land comes from."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pyproj
import xarray as xr
from contourpy import contour_generator

from fieldcast.pipeline.datasets.grid import crs_wkt, in_degrees, units_of_crs
from fieldcast.pipeline.datasets.schema import X, Y

POINTS = 600  # along each axis at which land is looked up: finer than a printed map shows


def coastlines(field: xr.DataArray) -> list[np.ndarray]:
    """Return lines `(point, x and y)` between land and sea within `field`'s grid, in the grid's own coordinates.

    None where the grid has neither a CRS nor degrees, or where the package `global-land-mask` is not installed.
    """
    if find_spec("global_land_mask") is None or field.sizes[Y] < 2 or field.sizes[X] < 2:
        return []
    y, x = (_refined(field[name].values) for name in (Y, X))
    located = _degrees(field, *np.meshgrid(x, y))
    if located is None:
        return []
    land = _land(*located)
    return [np.asarray(line) for line in contour_generator(x, y, land).lines(0.5)]


def _refined(centres: np.ndarray) -> np.ndarray:
    half = (centres[-1] - centres[0]) / (centres.size - 1) / 2
    return np.linspace(float(centres[0] - half), float(centres[-1] + half), POINTS)


def _degrees(field: xr.DataArray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return longitude and latitude of grid points (WGS 84), or None where the grid does not say."""
    if in_degrees(field):
        return x, y
    if (wkt := crs_wkt(field)) is None:
        return None
    crs = pyproj.CRS.from_wkt(wkt)
    factor = units_of_crs(field[X], crs)
    to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    longitude, latitude = to_degrees.transform(x * factor, y * factor)
    return longitude, latitude


def _land(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Return 1.0 on land, 0.0 at sea; points that have no place on Earth count as sea."""
    from global_land_mask import globe  # loads a mask of the whole Earth: 1 GB for the length of the process

    known = np.isfinite(longitude) & np.isfinite(latitude) & (np.abs(latitude) <= 90)
    east = (np.where(known, longitude, 0.0) + 180.0) % 360.0 - 180.0
    land = globe.is_land(np.where(known, latitude, 0.0), east) & known
    return np.asarray(land, np.float64)
