"""`fieldcast cells`: the storm cells of one forecast as a GeoJSON file."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np

from fieldcast.pipeline.api import open_forecasts
from fieldcast.pipeline.config import Verify
from fieldcast.pipeline.datasets.atomic import replace_durable
from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.storms.geojson import encoded, feature_collection, iso


def write_cells(path: Path, at: datetime | None, options: Verify, out: Path) -> str:
    """Write the storm cells of the forecast at an init time, by default the newest, and say how many there are."""
    forecasts = open_forecasts(path)
    times = forecasts[INIT_TIME].values
    chosen = times.max() if at is None else np.datetime64(at.replace(tzinfo=None), "ns")
    if chosen not in times:
        raise InputError(
            f"{path}: there is no forecast of {iso(chosen)}, expected one of {len(times)} init times from "
            f"{iso(times.min())} to {iso(times.max())}"
        )
    content = feature_collection(forecasts.sel({INIT_TIME: [chosen]}), options)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_durable(out, encoded(content))
    of_one = {feature["properties"]["id"] for feature in content["features"]}
    return f"{len(of_one)} storm cells of {iso(chosen)}, {len(content['features'])} outlines"
