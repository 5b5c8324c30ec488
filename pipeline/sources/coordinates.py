"""Horizontal coordinates of archives: the two axes, latitudes and longitudes of the cells, and the CRS."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyproj
import xarray as xr
from pyproj.exceptions import CRSError

from fieldcast.pipeline.datasets.schema import LATITUDE, LONGITUDE, X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.files import one_line
from fieldcast.pipeline.sources.template import cf_crs

STANDARD_NAMES = {
    Y: ("latitude", "projection_y_coordinate", "grid_latitude"),
    X: ("longitude", "projection_x_coordinate", "grid_longitude"),
}
COMMON_NAMES = {
    Y: ("y", "lat", "latitude", "rlat", "northing", "south_north", "j", "nj"),
    X: ("x", "lon", "longitude", "rlon", "easting", "west_east", "i", "ni"),
}
ANGLE_NAMES = {
    **dict.fromkeys(("lat", "latitude"), "latitude"),
    **dict.fromkeys(("lon", "longitude"), "longitude"),
    "rlat": "grid_latitude",
    "rlon": "grid_longitude",
}
LOCATED = {
    LATITUDE: {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
    LONGITUDE: {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
}
DEGREES = {  # all that CF takes
    key: {f"degree{s}{letters}" for s in ("", "s") for letters in (f"_{word}", f"_{word[0].upper()}", word[0].upper())}
    for key, word in ((LATITUDE, "north"), (LONGITUDE, "east"))
}
KEPT_OF_COORDINATE = ("units", "standard_name", "long_name", "axis")


def horizontal(path: str, raw: xr.Dataset, field: xr.DataArray, axis: str) -> str:
    """Return the field's dimension along `axis`, known by CF attributes, else by a common name."""
    for dim in field.dims:
        attrs = raw[dim].attrs if dim in raw.coords else {}
        if attrs.get("standard_name") in STANDARD_NAMES[axis] or attrs.get("axis") == axis.upper():
            return str(dim)
    for dim in field.dims:
        if str(dim).lower() in COMMON_NAMES[axis]:
            return str(dim)
    raise InputError(
        f"{path}: '{field.name}' has dimensions {list(field.dims)}, none is the {axis} axis: expected one named "
        f"{', '.join(COMMON_NAMES[axis])} or with a CF standard_name"
    )


def coordinate(path: str, dataset: xr.Dataset, axis: str, name: str) -> xr.Variable:
    """Return the axis y or x, which the file calls `name`, with its attributes; of a curvilinear grid its numbers."""
    if axis not in dataset.coords or dataset[axis].ndim != 1:  # a curvilinear grid: rows and columns are all there is
        return xr.Variable(axis, np.arange(dataset.sizes[axis], dtype=float), {"units": "1", "long_name": "cell"})
    if dataset[axis].dtype.kind not in "biuf":
        raise InputError(
            f"{path}: coordinate {name} is of type {dataset[axis].dtype}, expected numbers: give another by "
            "source.dimensions"
        )
    attributes = kept(dataset[axis].attrs, KEPT_OF_COORDINATE)
    if not {"units", "standard_name"} & set(attributes) and name.lower() in ANGLE_NAMES:
        attributes = {"units": "degrees", "standard_name": ANGLE_NAMES[name.lower()]}
    return xr.Variable(axis, dataset[axis].values.astype(float), attributes)


def cell_degrees(path: str, dataset: xr.Dataset) -> dict[str, xr.Variable]:
    """Return latitude and longitude `(y, x)` of the cells, where the file has both as fields, also one for each time.

    Those that a variable names as its coordinates come first. Raise `InputError` where they change with time.
    """
    found = {}
    for name in map(str, [*dataset.data_vars, *dataset.coords]):
        array = dataset[name]
        others = set(array.dims) - {Y, X}
        if array.ndim != 2 + len(others) or len(others) > 1 or array.size == 0:
            continue
        if key := _latitude_or_longitude(name, array.attrs):
            fields = array.transpose(..., Y, X).values.astype(np.float64).reshape(-1, *(array.sizes[a] for a in (Y, X)))
            if not np.array_equal(fields, np.broadcast_to(fields[0], fields.shape), equal_nan=True):
                raise InputError(f"{path}: '{name}' changes with time, expected a grid that stays: choose a part")
            found[key] = xr.Variable((Y, X), fields[0], LOCATED[key])
    return found if len(found) == 2 else {}


def _latitude_or_longitude(name: str, attributes: Mapping[Any, Any]) -> str | None:
    """Return what a field of coordinates is: by its standard name, else its units, else its own name."""
    if standard_name := attributes.get("standard_name"):
        return standard_name if standard_name in LOCATED else None
    if units := attributes.get("units"):
        return next((key for key, spellings in DEGREES.items() if units in spellings), None)
    return next((key for key in LOCATED if ANGLE_NAMES.get(name.lower()) == key), None)


def crs_of(path: str, dataset: xr.Dataset, name: str) -> pyproj.CRS | None:
    """Return the CRS of a variable, by its CF grid mapping; None where it has none.

    Raise `InputError` for a mapping that says nothing.
    """
    mapping = dataset[name].attrs.get("grid_mapping") or dataset[name].encoding.get("grid_mapping")
    if not mapping or mapping not in dataset.variables:
        return None
    attrs = {str(key): _plain(value) for key, value in dataset[mapping].attrs.items()}
    try:
        return cf_crs(json.dumps(attrs))
    except CRSError as error:
        raise InputError(f"{path}: grid mapping {mapping}: {one_line(error)}: correct it or remove it") from None


def kept(attrs: Mapping[Any, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the attributes of these names, as Python's own types."""
    return {name: _plain(attrs[name]) for name in names if name in attrs and attrs[name] != "unknown"}


def _plain(value: Any) -> Any:
    """Return an attribute as Python's own type; of text that is no UTF-8 the odd bytes as question marks."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value
