"""Where on Earth the points of a grid are, from its CRS, its degrees, or latitudes and longitudes of its cells."""

from __future__ import annotations

import numpy as np
import pyproj
import xarray as xr

from fieldcast.pipeline.datasets.grid import crs_wkt, in_degrees, units_of_crs
from fieldcast.pipeline.datasets.schema import LATITUDE, LONGITUDE, X, Y


def degrees_at(field: xr.DataArray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
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
