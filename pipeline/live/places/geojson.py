"""Places of a GeoJSON file (RFC 7946): points and polygons with a name each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldcast.pipeline.errors import InputError

LONGEST_NAME = 200


@dataclass(frozen=True)
class Feature:
    """A named point, or a polygon: its outer ring and its holes."""

    name: str
    rings: tuple[np.ndarray, ...]  # (vertex, x and y), closed; of a point one ring of one vertex

    @property
    def is_point(self) -> bool:
        """Return whether it is a point."""
        return len(self.rings[0]) == 1


def read_features(path: Path) -> list[Feature]:
    """Return the features of a file in its order; raise `InputError` with feature, value and fix for any that is wrong.

    Expected are a FeatureCollection of Point and Polygon with a `name` among the properties, all names different.
    """
    content = _parsed(path)
    if content.get("type") != "FeatureCollection" or not isinstance(content.get("features"), list):
        raise InputError(f"{path}: type is {content.get('type')!r}, expected a FeatureCollection with features")
    if "crs" in content:
        raise InputError(
            f"{path}: has a member crs, expected longitude and latitude (EPSG:4326): ogr2ogr -t_srs EPSG:4326"
        )
    if not content["features"]:
        raise InputError(f"{path}: has no feature, expected a place at least: add one, or leave live.places out")
    features = []
    for number, feature in enumerate(content["features"], 1):
        features.append(_feature(f"{path}: feature {number}", feature))
        if features[-1].name in (other.name for other in features[:-1]):
            raise InputError(f"{path}: feature {number} has the name '{features[-1].name}' again: give it another")
    return features


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), named by live.places: correct the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no GeoJSON ({error}): export it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a FeatureCollection")
    return content


def _feature(where: str, feature: Any) -> Feature:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else None
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
        raise InputError(f"{where}: name is {name!r}, expected a text in its properties: add 'name'")
    geometry = feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    where = f"{where} ('{name}')"
    if kind == "Point":
        return Feature(name, (_positions(where, [geometry.get("coordinates")]),))
    if kind != "Polygon":
        raise InputError(
            f"{where}: geometry is {kind!r}, expected Point or Polygon: make each part a feature of its own"
        )
    rings = geometry.get("coordinates")
    if not isinstance(rings, list) or not rings:
        raise InputError(f"{where}: has no ring, expected one at least")
    return Feature(name, tuple(_ring(f"{where}, ring {k}", ring) for k, ring in enumerate(rings, 1)))


def _positions(where: str, positions: Any) -> np.ndarray:
    """Return positions as (vertex, x and y); heights are left out."""
    if not isinstance(positions, list):
        raise InputError(f"{where}: coordinates are {positions!r}, expected a list of positions")
    for position in positions:
        numbers = isinstance(position, list) and all(type(value) in (int, float) for value in position)
        if not numbers or len(position) not in (2, 3) or not np.isfinite(position).all():
            raise InputError(f"{where}: position is {position!r}, expected [longitude, latitude]: correct it")
    return np.array([position[:2] for position in positions], np.float64)


def _ring(where: str, positions: Any) -> np.ndarray:
    ring = _positions(where, positions)
    if len(ring) < 4:
        raise InputError(f"{where}: has {len(ring)} positions, expected 4 at least, the last equal to the first")
    if not np.array_equal(ring[0], ring[-1]):
        raise InputError(f"{where}: ends at {_text(ring[-1])}, expected its first position {_text(ring[0])}: close it")
    if (crossing := _crossing(ring)) is not None:
        raise InputError(
            f"{where}: crosses itself after {_text(ring[crossing])}: repair it, such as by QGIS' Fix geometries"
        )
    if enclosed(ring) == 0:
        raise InputError(f"{where}: encloses no area: correct it, or make it a Point")
    return ring


def enclosed(ring: np.ndarray) -> float:
    """Return the area within a closed ring (vertex, x and y), in squares of its coordinates' units."""
    x, y = (ring - ring[0]).T
    return float(abs(x[:-1] @ y[1:] - x[1:] @ y[:-1]) / 2)


def _crossing(ring: np.ndarray) -> int | None:
    """Return the number of the first edge that another one crosses; edges that only touch do not."""
    start, stop = ring[:-1], ring[1:]
    for k in range(len(start) - 2):
        others = slice(k + 2, len(start) - (k == 0))  # neighbours share a vertex
        first, last = start[others], stop[others]
        sides = _side(start[k], stop[k], first) * _side(start[k], stop[k], last)
        if ((sides < 0) & (_side(first, last, start[k]) * _side(first, last, stop[k]) < 0)).any():
            return k
    return None


def _side(start: np.ndarray, stop: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Return on which side of the line from `start` to `stop` a point lies: the sign."""
    along, to = stop - start, point - start
    side: np.ndarray = np.sign(along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0])
    return side


def _text(position: np.ndarray) -> str:
    return f"[{position[0]:.6g}, {position[1]:.6g}]"
