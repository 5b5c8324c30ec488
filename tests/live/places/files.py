"""Files of places and of stations on the grid of `tests.live.contexts`, 16 x 16 cells of 2 km."""

import json
from pathlib import Path
from typing import Any

POINT: dict[str, Any] = {"type": "Point", "coordinates": [5.0, 9.0]}
SQUARE: dict[str, Any] = {"type": "Polygon", "coordinates": [[[4, 4], [12, 4], [12, 10], [4, 10], [4, 4]]]}


def feature(geometry: Any, name: Any = "Town") -> dict[str, Any]:
    return {"type": "Feature", "properties": {"name": name}, "geometry": geometry}


def write(path: Path, *features: Any) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path
