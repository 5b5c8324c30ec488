"""Contents of an archive that nobody has described yet: its radar format, or the variables of its first file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions, RadarOptions
from fieldcast.pipeline.datasets.schema import TIME, X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import grib
from fieldcast.pipeline.sources.coordinates import horizontal
from fieldcast.pipeline.sources.decoder import decode
from fieldcast.pipeline.sources.files import find, is_url, listed
from fieldcast.pipeline.sources.gridded import PATTERNS, GriddedSource, engine_of, is_zarr, labels_of, open_raw
from fieldcast.pipeline.sources.radar.composites import FORMATS
from fieldcast.pipeline.sources.valid_time import frame_times

NO_FIELD = ("flag_meanings", "flag_values", "flag_masks")  # attributes of what counts or classifies


@dataclass(frozen=True)
class Variable:
    """A variable of an archive with a time and two horizontal axes."""

    name: str
    units: str | None
    dimensions: tuple[str, ...]  # the file's own names of time, y and x
    levels: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # what it has beside them, and is chosen from


def radar_format(path: str) -> RadarOptions | None:
    """Return the options of a radar archive whose first file one of the formats reads; None where none does."""
    if is_url(path):
        return None
    others = [{"format": "odim", "quantity": name} for name in ("ACRR", "DBZH")]
    for content in [*({"format": name} for name in FORMATS), *others]:
        options = RadarOptions.model_validate({"path": path, **content})
        kind = FORMATS[options.format]
        try:
            files = find(path, kind.patterns)
            decode(files[0], options.decoding, kind.header, files[0], options)
        except InputError:  # of another format
            continue
        return options
    return None


def variables_of(path: str) -> list[Variable]:
    """Return the variables that can be forecast, in the file's order, of the first file at `path` or of a Zarr store.

    Raise `InputError` where there is no file, it cannot be read, or none of its variables has a time and two
    horizontal axes.
    """
    options = GriddedOptions.model_construct(path=path, variables=[])  # no variable is known yet
    first = path if is_zarr(options) else _first_file(path, options)
    return decode(first, options.decoding, _variables, first, options)


def _first_file(path: str, options: GriddedOptions) -> str:
    files = [] if is_url(path) else listed(path, ["*"])
    if files and not listed(path, PATTERNS):
        endings = ", ".join(sorted({Path(name).suffix or Path(name).name for name in files})[:5])
        raise InputError(
            f"{path}: {len(files)} files, {endings}, of no format that is read: radar of formats {', '.join(FORMATS)}, "
            f"and {' '.join(PATTERNS)} .zarr: convert them to NetCDF"
        )
    return GriddedSource(options).paths()[0]


def _variables(first: str, options: GriddedOptions) -> list[Variable]:
    engine = engine_of(first, options)
    if engine == "cfgrib":
        return _of_grib(first)
    with open_raw(first, engine, options) as raw:
        found = [_variable(first, raw, str(name)) for name in raw.data_vars]
        variables = [variable for variable in found if variable is not None]
        if not variables:
            shown = ", ".join(f"{name} {tuple(array.dims)}" for name, array in list(raw.data_vars.items())[:8])
            raise InputError(
                f"{first}: no variable has a CF time and two horizontal axes, found {shown or 'none'}: choose another"
                f" file, or write params.yaml by hand ({' '.join(PATTERNS)}, .zarr)"
            )
    return variables


def _variable(path: str, raw: xr.Dataset, name: str) -> Variable | None:
    array = raw[name]
    bounds = {other.attrs.get("bounds") for other in raw.variables.values()} | {
        other.encoding.get("bounds") for other in raw.variables.values()
    }
    if array.dtype.kind not in "iuf" or name in bounds or any(key in array.attrs for key in NO_FIELD):
        return None
    try:
        y, x = (horizontal(path, raw, array, axis) for axis in (Y, X))
        times = frame_times(path, raw, array)
    except InputError:
        return None
    if y == x or not set(times.places) <= set(map(str, array.dims)):
        return None
    used = {y, x, *times.places}
    levels = {dim: labels_of(raw, dim) for dim in map(str, array.dims) if dim not in used and raw.sizes[dim] > 1}
    return Variable(name, array.attrs.get("units"), (*times.places, y, x), levels)


def _of_grib(path: str) -> list[Variable]:
    by_name: dict[str, list[grib.Message]] = {}
    for message in grib.messages_of(path):
        by_name.setdefault(message.name, []).append(message)
    variables = []
    for name, messages in by_name.items():
        found = {key: sorted({m.keys[key] for m in messages}, key=str) for key in grib.LEVELS}
        levels = {key: values for key, values in found.items() if len(values) > 1}
        variables.append(Variable(name, messages[0].attributes.get("units"), (TIME, Y, X), levels))
    return variables
