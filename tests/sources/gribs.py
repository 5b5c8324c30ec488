"""GRIB files written field by field, with any keys."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyproj  # noqa: F401  before ecCodes, whose PROJ finds another database

SCREEN = {"typeOfFirstFixedSurface": 103, "scaleFactorOfFirstFixedSurface": 0, "scaledValueOfFirstFixedSurface": 2}
DAY = {"dataDate": 20200101, "dataTime": 0}


def write(path: Path, messages: Sequence[tuple[Mapping[str, Any], np.ndarray]], sample: str = "GRIB2") -> None:
    """Write a message for each of (keys, values), in GRIB 2 or as `sample` is."""
    import eccodes

    with path.open("wb") as file:
        for keys, values in messages:
            handle = eccodes.codes_grib_new_from_samples(sample)
            for key, value in keys.items():
                eccodes.codes_set(handle, key, value)
            eccodes.codes_set_values(handle, values.ravel())
            eccodes.codes_write(handle, file)
            eccodes.codes_release(handle)


def degrees(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return latitude and longitude of the points of the first field, flat, as ecCodes has them."""
    import eccodes

    with path.open("rb") as file:
        handle = eccodes.codes_grib_new_from_file(file)
        latitude, longitude = (eccodes.codes_get_array(handle, key) for key in ("latitudes", "longitudes"))
        eccodes.codes_release(handle)
    return latitude, longitude
