"""Storm cells of one forecast as GeoJSON (RFC 7946): outlines in longitude and latitude, which every map tool draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyproj
import xarray as xr
from contourpy import FillType, contour_generator

from fieldcast.pipeline.config import StormCell, Verify
from fieldcast.pipeline.datasets.geolocation import degrees_at
from fieldcast.pipeline.datasets.grid import spacing_km
from fieldcast.pipeline.datasets.labels import readable_units
from fieldcast.pipeline.datasets.schema import INIT_TIME, VALID_TIME, X, Y, field_names, lead_minutes
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.storms.tracks import Track, follow, velocity
from fieldcast.pipeline.verification.blocks import deciding_field
from fieldcast.pipeline.verification.storm_cells import StormCellOptions, StormCells, find

EARTH = pyproj.Geod(ellps="WGS84")
DECIMALS = 5  # of degrees: a metre
WITHIN = 0.499  # of a grid cell, from its centre


def feature_collection(forecast: xr.Dataset, options: Verify) -> dict[str, Any]:
    """Return the storm cells of a forecast (init_time 1, lead_time, [member,] y, x), as `verify.storm_cells` has them.

    A feature is one storm cell at one lead: `id` is the same at all leads of a storm cell, `speed_km_h` and `towards`
    (degrees from north, clockwise) are null where there is one lead alone. Members make a storm cell as they do in
    scores: by votes, or by their mean.

    Raise `InputError` where no storm cells are asked for, or the grid has no place on Earth.
    """
    wanted = {name: options.storm_cells[name] for name in field_names(forecast) if name in options.storm_cells}
    if not wanted:
        raise InputError(
            "params.yaml: verify.storm_cells has none of the forecast's variables: say what a storm cell is, such as "
            f"{{{field_names(forecast)[0]}: {{at_least: 5, area_km2: 16}}}}"
        )
    place = Place(forecast)
    features = [feature for name, cell in wanted.items() for feature in _features(forecast, name, cell, place)]
    return {"type": "FeatureCollection", "features": features}


def encoded(content: Mapping[str, Any]) -> bytes:
    """Return GeoJSON as a file's bytes, a line for each feature."""
    lines = ",\n".join(json.dumps(feature) for feature in content["features"])
    return f'{{"type": "FeatureCollection", "features": [\n{lines}\n]}}\n'.encode()


class Place:
    """Longitude and latitude of a grid's half cells, where outlines turn, and of any point between."""

    def __init__(self, grid: xr.Dataset) -> None:
        self.y, self.x = (_halves(grid[axis].values) for axis in (Y, X))
        located = degrees_at(grid[field_names(grid)[0]], self.x, self.y)
        if located is None:
            raise InputError(
                "the grid has no place on Earth, which GeoJSON needs: its coordinates are no degrees, and it has "
                "neither a CRS nor latitudes and longitudes of its cells"
            )
        self.longitude, self.latitude = located

    def of(self, points: np.ndarray) -> np.ndarray:
        """Return longitude and latitude (n, 2) of points (n, 2), row and column in grid cells from the first centre."""
        place = 2 * points + 2  # in half cells from the first half cell of the frame around the grid
        first = np.clip(np.floor(place).astype(int), 0, [len(self.y) - 2, len(self.x) - 2])
        part = place - first
        found = []
        for field in (self.longitude, self.latitude):
            corners = [field[first[:, 0] + i, first[:, 1] + j] for i in (0, 1) for j in (0, 1)]
            north, east = part[:, 0], part[:, 1]
            weights = [(1 - north) * (1 - east), (1 - north) * east, north * (1 - east), north * east]
            found.append(sum(weight * corner for weight, corner in zip(weights, corners, strict=True)))
        return np.stack(found, axis=1)


def _halves(centres: np.ndarray) -> np.ndarray:
    """Return positions half a cell apart, from a cell before the first centre to one after the last."""
    cells = np.arange(-1, len(centres) + 0.5, 0.5)
    step = (centres[-1] - centres[0]) / (len(centres) - 1)
    inside = np.interp(cells, np.arange(len(centres)), centres)
    beyond = np.minimum(cells, 0) + np.maximum(cells - (len(centres) - 1), 0)
    return np.asarray(inside + beyond * step)


def _features(forecast: xr.Dataset, name: str, cell: StormCell, place: Place) -> list[dict[str, Any]]:
    spacing = spacing_km(forecast)
    options = StormCellOptions(**cell.model_dump(), spacing=spacing)
    field = forecast[name].isel({INIT_TIME: 0})
    found = [find(values, options) for values in deciding_field(field, cell.at_least)]
    leads = lead_minutes(forecast)
    step = (leads[1] - leads[0]) / 60 if len(leads) > 1 else 0.0
    features = []
    for number, track in enumerate(follow(found, cell.within_km), 1):
        motion = _motion(track, found, step, place, spacing)
        for k, own in zip(track.fields, track.numbers, strict=True):
            storm = found[k]
            centre = place.of(storm.centres[[own]] / spacing)[0]
            properties = {
                "id": number,
                "variable": name,
                "init_time": iso(forecast[INIT_TIME].values[0]),
                "lead_minutes": leads[k],
                "valid_time": iso(forecast[VALID_TIME].values[0, k]),
                "centre": np.round(centre, DECIMALS).tolist(),
                "area_km2": round(float(storm.areas[own]), 2),
                "highest": round(float(storm.peaks[own]), 3),
                "units": readable_units(str(forecast[name].attrs["units"])),
                **motion,
            }
            geometry = {"type": "MultiPolygon", "coordinates": outlines(storm.labels == own + 1, place)}
            features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return features


def _motion(
    track: Track, found: Sequence[StormCells], step: float, place: Place, spacing: tuple[float, float]
) -> dict[str, float | None]:
    """Return speed and direction on the Earth of a track's mean motion."""
    slope = velocity(track, found, step)
    if slope is None:
        return {"speed_km_h": None, "towards": None}
    hours = (track.fields[-1] - track.fields[0]) * step
    middle = np.mean([found[k].centres[own] for k, own in zip(track.fields, track.numbers, strict=True)], axis=0)
    ends = place.of((middle + np.outer([-0.5, 0.5], slope * hours)) / spacing)
    azimuth, _, metres = EARTH.inv(*ends[0], *ends[1])
    return {"speed_km_h": round(metres / 1000 / hours, 2), "towards": round(azimuth % 360, 1)}


def outlines(mask: np.ndarray, place: Place) -> list[list[list[list[float]]]]:
    """Return the polygons (outer ring, then holes) around the grid cells of a mask (y, x), in longitude and latitude.

    They follow the edges of grid cells: each has two points along an axis, just within its edges, between which the
    contour passes.
    """
    doubled = np.pad(mask.astype(float), 1).repeat(2, axis=0).repeat(2, axis=1)
    y, x = ((np.arange(-1, size + 1)[:, None] + [-WITHIN, WITHIN]).ravel() for size in mask.shape)
    filled = contour_generator(x, y, doubled, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    polygons, offsets = cast("tuple[list[np.ndarray], list[np.ndarray]]", filled)
    result = []
    for points, offset in zip(polygons, offsets, strict=True):
        rings = [_corners(points[start:end, ::-1]) for start, end in pairwise(offset.tolist())]
        result.append([_wound(place.of(ring), outer=k == 0) for k, ring in enumerate(rings)])
    return result


def _corners(ring: np.ndarray) -> np.ndarray:
    """Return the points of a closed ring (n, 2) where it turns, on the edges of grid cells."""
    edges = np.rint(2 * ring[:-1]) / 2
    edges = edges[(edges != np.roll(edges, 1, axis=0)).any(axis=1)]
    before, after = edges - np.roll(edges, 1, axis=0), np.roll(edges, -1, axis=0) - edges
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return np.concatenate([edges[turns], edges[turns][:1]])


def _wound(ring: np.ndarray, *, outer: bool) -> list[list[float]]:
    """Return a closed ring counterclockwise if it is an outer one, else clockwise, as RFC 7946 has it."""
    x, y = ring.T
    area = float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())
    ordered = ring if (area > 0) == outer else ring[::-1]
    points: list[list[float]] = np.round(ordered, DECIMALS).tolist()
    return [*points[:-1], points[0]]


def iso(time: np.datetime64) -> str:
    """Return a time as text, to the second, in UTC."""
    return f"{time.astype('datetime64[s]')}Z"
