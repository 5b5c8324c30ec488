"""Coastlines of a grid, where the grid says where on Earth it is; decision 14 says where the land comes from."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pyproj
import xarray as xr
from contourpy import contour_generator

from fieldcast.pipeline.datasets.grid import crs_wkt, in_degrees, units_of_crs
from fieldcast.pipeline.datasets.schema import LATITUDE, LONGITUDE, X, Y

POINTS = 600  # along each axis at which land is looked up: finer than a printed map shows


def coastlines(field: xr.DataArray) -> list[np.ndarray]:
    """Return lines `(point, x and y)` between land and sea within `field`'s grid, in the grid's own coordinates.

    None where the grid has no CRS, no degrees and no latitudes of its cells, or where the package `global-land-mask` is
    not installed.
    """
    if find_spec("global_land_mask") is None or field.sizes[Y] < 2 or field.sizes[X] < 2:
        return []
    y, x = (_refined(field[name].values) for name in (Y, X))
    located = _degrees(field, x, y)
    if located is None:
        return []
    land = _land(*located)
    return [np.asarray(line) for line in contour_generator(x, y, land).lines(0.5)]


def _refined(centres: np.ndarray) -> np.ndarray:
    half = (centres[-1] - centres[0]) / (centres.size - 1) / 2
    return np.linspace(float(centres[0] - half), float(centres[-1] + half), POINTS)


def _degrees(field: xr.DataArray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return longitude and latitude (WGS 84) of the points on axes `x` and `y`, or None where the grid does not say."""
    wkt = crs_wkt(field)
    crs = None if wkt is None else pyproj.CRS.from_wkt(wkt)
    columns, rows = np.meshgrid(x, y)
    if in_degrees(field) and (crs is None or not crs.is_derived):
        return columns, rows
    if crs is not None:
        factor = units_of_crs(field[X], crs)
        to_degrees = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
        longitude, latitude = to_degrees.transform(columns * factor, rows * factor)
        return longitude, latitude
    return _between_cells(field, x, y) if {LATITUDE, LONGITUDE} <= set(field.coords) else None


def _between_cells(field: xr.DataArray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return longitude and latitude of points from those of the cells about them, on the sphere."""
    longitude, latitude = (np.deg2rad(field[name].values) for name in (LONGITUDE, LATITUDE))
    directions = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)
    rows, columns = (_weights(field[name].values, points) for name, points in ((Y, y), (X, x)))
    east, north, up = (rows @ direction @ columns.T for direction in directions)
    return np.rad2deg(np.arctan2(north, east)), np.rad2deg(np.arctan2(up, np.hypot(east, north)))


def _weights(centres: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the weight of each centre at each point `(point, centre)`: linear between two and beyond the last."""
    place = (points - centres[0]) / (centres[-1] - centres[0]) * (centres.size - 1)
    first = np.clip(np.floor(place).astype(int), 0, centres.size - 2)
    weights = np.zeros((points.size, centres.size))
    weights[np.arange(points.size), first] = first + 1 - place
    weights[np.arange(points.size), first + 1] = place - first
    return weights


def _land(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Return 1.0 on land, 0.0 at sea; points that have no place on Earth count as sea."""
    from global_land_mask import globe  # loads a mask of the whole Earth: 1 GB for the length of the process

    known = np.isfinite(longitude) & np.isfinite(latitude) & (np.abs(latitude) <= 90)
    east = (np.where(known, longitude, 0.0) + 180.0) % 360.0 - 180.0
    land = globe.is_land(np.where(known, latitude, 0.0), east) & known
    return np.asarray(land, np.float64)
