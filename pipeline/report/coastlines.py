"""Coastlines of a grid, where the grid says where on Earth it is; decision 14 says where the land comes from."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import xarray as xr
from contourpy import contour_generator

from fieldcast.pipeline.datasets.geolocation import degrees_at
from fieldcast.pipeline.datasets.schema import X, Y

POINTS = 600  # along each axis at which land is looked up: finer than a printed map shows


def coastlines(field: xr.DataArray) -> list[np.ndarray]:
    """Return lines `(point, x and y)` between land and sea within `field`'s grid, in the grid's own coordinates.

    None where the grid has no CRS, no degrees and no latitudes of its cells, or where the package `global-land-mask` is
    not installed.
    """
    if find_spec("global_land_mask") is None or field.sizes[Y] < 2 or field.sizes[X] < 2:
        return []
    y, x = (_refined(field[name].values) for name in (Y, X))
    located = degrees_at(field, x, y)
    if located is None:
        return []
    land = _land(*located)
    return [np.asarray(line) for line in contour_generator(x, y, land).lines(0.5)]


def _refined(centres: np.ndarray) -> np.ndarray:
    half = (centres[-1] - centres[0]) / (centres.size - 1) / 2
    return np.linspace(float(centres[0] - half), float(centres[-1] + half), POINTS)


def _land(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Return 1.0 on land, 0.0 at sea; points that have no place on Earth count as sea."""
    from global_land_mask import globe  # loads a mask of the whole Earth: 1 GB for the length of the process

    known = np.isfinite(longitude) & np.isfinite(latitude) & (np.abs(latitude) <= 90)
    east = (np.where(known, longitude, 0.0) + 180.0) % 360.0 - 180.0
    land = globe.is_land(np.where(known, latitude, 0.0), east) & known
    return np.asarray(land, np.float64)
