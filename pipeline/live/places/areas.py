"""Places on a grid: the cell of a point, the share of each cell in a polygon."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

import numpy as np
import pyproj
import xarray as xr

from fieldcast.pipeline.datasets.grid import KM_PER_UNIT, unit_of, units_of_crs
from fieldcast.pipeline.datasets.signature import Axis, DataSignature
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.places.geojson import Feature, enclosed, read_features

LINES = 16  # through a row of cells, along which shares are exact
LEAST_VALID = 0.5  # of a place's weight: with less of it observed it has no value
POSITIONS = 10  # along each axis, of an area that is moved over the grid
SLACK = 1e-6  # of a cell, of rounding at the grid's border
EARTH = pyproj.Geod(ellps="WGS84")
Points = np.ndarray  # (point, x and y)


@dataclass(frozen=True)
class Place:
    """A point or an area on a grid: the weights (h, w) of its cells, the first of which is at `row` and `column`."""

    name: str
    row: int
    column: int
    weights: np.ndarray
    x: float  # longitude, or the grid's own coordinates where it has no place on Earth
    y: float
    area_km2: float | None  # of a polygon; NaN where the grid has no lengths

    @property
    def is_point(self) -> bool:
        """Return whether it is a point."""
        return self.area_km2 is None

    @property
    def shape_key(self) -> str:
        """Return what places of the same shape share, wherever they lie."""
        return hashlib.sha256(repr(self.weights.shape).encode() + self.weights.tobytes()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """Return what tells the cells of a place from those of another."""
        return f"{self.shape_key}-{self.row}-{self.column}"

    def of(self, fields: np.ndarray) -> np.ndarray:
        """Return the mean over the place (...,) of fields (..., y, x); NaN where less than half of it has values."""
        return self._mean(fields, self.row, self.column)

    def moved(self, fields: np.ndarray) -> np.ndarray:
        """Return the means (..., n) over areas of this shape all over the grid, `POSITIONS` along each axis at most."""
        rows, columns = (
            np.unique(np.linspace(0, cells - size, POSITIONS).astype(int))
            for cells, size in zip(fields.shape[-2:], self.weights.shape, strict=True)
        )
        return np.stack([self._mean(fields, row, column) for row in rows for column in columns], axis=-1)

    def _mean(self, fields: np.ndarray, row: int, column: int) -> np.ndarray:
        h, w = self.weights.shape
        values = fields[..., row : row + h, column : column + w]
        valid = np.isfinite(values)
        weight = (valid * self.weights).sum((-2, -1))
        total = (np.where(valid, values, 0.0) * self.weights).sum((-2, -1))
        with np.errstate(invalid="ignore"):
            return np.where(weight >= LEAST_VALID * self.weights.sum(), total / weight, nan)


def read_places(path: Path, signature: DataSignature) -> list[Place]:
    """Return the places of a GeoJSON file on a grid; raise `InputError` for one that is not wholly on it."""
    features = read_features(path)
    to_grid = _to_grid(path, signature)
    return [_place(path, feature, signature, to_grid) for feature in features]


def is_on_earth(signature: DataSignature) -> bool:
    """Return whether the grid's coordinates say where on Earth it lies."""
    return signature.crs is not None or unit_of(signature.y.units) == "degree"


def _to_grid(path: Path, signature: DataSignature) -> Callable[[Points], Points]:
    """Return the function that brings points of a file into the numbers of rows and columns, x first.

    They are longitudes and latitudes, or on a grid without any place on Earth the grid's own coordinates.
    """
    if signature.located is not None:
        raise InputError(
            f"{path}: places need a grid whose axes are degrees or have a CRS; this one has latitudes and longitudes of"
            " cells alone: give its file a grid mapping, or leave live.places out"
        )
    axes = (signature.x, signature.y)
    crs = None if signature.crs is None else pyproj.CRS.from_wkt(signature.crs)
    is_plain = crs is None or (crs.is_geographic and not crs.is_derived)
    turned = is_plain and unit_of(signature.x.units) == "degree"
    middle = (signature.x.first + signature.x.last) / 2
    transformer = None if crs is None else pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)

    def to_grid(points: Points) -> Points:
        located = points if transformer is None else np.stack(transformer.transform(*points.T), axis=1)
        if crs is not None:
            located = located / [units_of_crs(_labelled(axis), crs) for axis in axes]
        if turned:  # 350 degrees are -10
            located = np.stack([(located[:, 0] - middle + 180) % 360 - 180 + middle, located[:, 1]], axis=1)
        return np.stack([_number(axis, located[:, k]) for k, axis in enumerate(axes)], axis=1)

    return to_grid


def _number(axis: Axis, values: np.ndarray) -> np.ndarray:
    """Return where on an axis values lie, in cells from the centre of the first."""
    return (values - axis.first) / ((axis.last - axis.first) / max(axis.cells - 1, 1) or 1.0)


def _place(path: Path, feature: Feature, signature: DataSignature, to_grid: Callable[[Points], Points]) -> Place:
    vertices, sizes = to_grid(feature.rings[0]), np.array([signature.x.cells, signature.y.cells])
    beyond = np.nan_to_num(np.maximum(-0.5 - vertices, vertices - (sizes - 0.5)), nan=np.inf).max(axis=1)
    if beyond.max() > SLACK:
        x, y = feature.rings[0][beyond.argmax()]
        raise InputError(
            f"{path}: '{feature.name}' lies off the grid at [{x:.6g}, {y:.6g}], expected {_extent(signature)}: correct"
            " it, or cut it at the border"
        )
    if feature.is_point:
        column, row = np.clip(np.rint(vertices[0]).astype(int), 0, sizes - 1)
        x, y = feature.rings[0][0]
        return Place(feature.name, int(row), int(column), np.ones((1, 1)), float(x), float(y), None)
    shares = cell_shares([_bent(ring, to_grid) for ring in feature.rings], signature.grid_shape)
    if not shares.any():
        raise InputError(f"{path}: '{feature.name}' is much smaller than a cell: make it a Point")
    rows, columns = (np.flatnonzero(shares.any(axis)) for axis in (1, 0))
    weights = (shares * _row_areas(signature)[:, None])[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    x, y = _centre(feature.rings[0])
    return Place(feature.name, int(rows[0]), int(columns[0]), weights, x, y, _area(feature, signature))


def _bent(ring: np.ndarray, to_grid: Callable[[Points], Points]) -> np.ndarray:
    """Return a ring on the grid, with vertices in between where an edge is longer than a cell: it may be bent there."""
    vertices = to_grid(ring)
    lengths = np.nan_to_num(np.abs(np.diff(vertices, axis=0)).max(axis=1, initial=0.0), nan=0.0, posinf=0.0)
    pieces = np.clip(np.ceil(lengths), 1, 10_000).astype(int)
    places = np.concatenate([k + np.arange(count) / count for k, count in enumerate(pieces)] + [[len(ring) - 1.0]])
    return to_grid(np.stack([np.interp(places, np.arange(len(ring)), ring[:, k]) for k in (0, 1)], axis=1))


def cell_shares(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Return the share of each cell (y, x) within rings of column and row, by even and odd crossings, holes left out.

    Along `LINES` through each row of cells the length inside is exact.
    """
    rows, columns = shape
    first = np.concatenate([ring[:-1] for ring in rings])
    last = np.concatenate([ring[1:] for ring in rings])
    borders, shares = np.arange(columns + 1) - 0.5, np.zeros(shape)
    low, high = (int(np.clip(round(end(first[:, 1])), 0, rows - 1)) for end in (np.min, np.max))
    for row in range(low, high + 1):
        for line in row - 0.5 + (np.arange(LINES) + 0.5) / LINES:
            (x0, y0), (x1, y1) = (ends[(first[:, 1] <= line) != (last[:, 1] <= line)].T for ends in (first, last))
            crossings = np.sort(x0 + (line - y0) * (x1 - x0) / (y1 - y0))
            begins, ends = (borders[:, None] - side for side in (crossings[::2], crossings[1::2]))
            shares[row] += np.diff((np.maximum(begins, 0) - np.maximum(ends, 0)).sum(axis=1))
    return np.clip(shares / LINES, 0.0, 1.0)


def _row_areas(signature: DataSignature) -> np.ndarray:
    """Return the area of each row's cells relative to one another (y,)."""
    if unit_of(signature.y.units) != "degree":
        return np.ones(signature.y.cells)
    return np.cos(np.deg2rad(np.linspace(signature.y.first, signature.y.last, signature.y.cells)))


def _centre(ring: np.ndarray) -> tuple[float, float]:
    """Return the centroid of a closed ring."""
    x, y = (ring - ring[0]).T
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    moments = [float(((side[:-1] + side[1:]) * cross).sum() / (3 * cross.sum())) for side in (x, y)]
    return float(ring[0, 0] + moments[0]), float(ring[0, 1] + moments[1])


def _area(feature: Feature, signature: DataSignature) -> float:
    """Return the area of a polygon without its holes in km2, on the ellipsoid where the grid lies on Earth."""
    if is_on_earth(signature):
        outer, *holes = (abs(EARTH.polygon_area_perimeter(*ring.T)[0]) / 1e6 for ring in feature.rings)
    else:
        square = KM_PER_UNIT.get(unit_of(signature.y.units), nan) * KM_PER_UNIT.get(unit_of(signature.x.units), nan)
        outer, *holes = (enclosed(ring) * square for ring in feature.rings)
    return float(outer - sum(holes))


def _extent(signature: DataSignature) -> str:
    """Return in words what coordinates a file may have: the borders of the grid."""
    x, y = (_borders(axis) for axis in (signature.x, signature.y))
    names = (
        ("longitude", "latitude")
        if is_on_earth(signature)
        else (f"x in {signature.x.units}", f"y in {signature.y.units}")
    )
    corners = np.stack([side.ravel() for side in np.meshgrid(x, y)])
    if signature.crs is not None:
        crs = pyproj.CRS.from_wkt(signature.crs)
        factors = [[units_of_crs(_labelled(axis), crs)] for axis in (signature.x, signature.y)]
        corners = np.stack(
            pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(*(corners * factors))
        )
    spans = [f"{name} from {side.min():.6g} to {side.max():.6g}" for name, side in zip(names, corners, strict=True)]
    return " and ".join(spans)


def _labelled(axis: Axis) -> xr.DataArray:
    return xr.DataArray(0.0, attrs={"units": axis.units})


def _borders(axis: Axis) -> np.ndarray:
    half = (axis.last - axis.first) / max(axis.cells - 1, 1) / 2
    return np.array([axis.first - half, axis.last + half])
