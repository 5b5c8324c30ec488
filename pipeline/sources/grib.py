"""GRIB files, message by message: headers are read once, then each field on its own.

A field belongs to its valid time; an accumulation is turned into a rate over its own period, which ends there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions
from fieldcast.pipeline.datasets.grid import check_axis
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.accumulations import KNOWN, RATES, as_rate, require_rate, unknown_period
from fieldcast.pipeline.sources.decoder import decode
from fieldcast.pipeline.sources.files import Header, one_line
from fieldcast.pipeline.sources.labels import is_label
from fieldcast.pipeline.sources.missing import without_impossible
from fieldcast.pipeline.sources.template import fields, grid_template
from fieldcast.pipeline.sources.units import Conversion, converted

LOCK = threading.Lock()  # ecCodes is not built for threads everywhere
END = b"7777"  # of every message
LEVELS = ("typeOfLevel", "level", "number", "stepType")  # one of each is a field
ERA5_PERIOD_SECONDS = {"oper": 3600, "enda": 10_800}  # accumulations since the step before, whatever the range says
LATITUDE = {"units": "degrees_north", "standard_name": "latitude", "long_name": "latitude"}
LONGITUDE = {"units": "degrees_east", "standard_name": "longitude", "long_name": "longitude"}
ROTATED = ({"units": "degrees", "standard_name": f"grid_{name}"} for name in ("latitude", "longitude"))
ROTATED_LATITUDE, ROTATED_LONGITUDE = ROTATED


@dataclass(frozen=True)
class Message:
    """Header of one field."""

    number: int  # from 1, in file order
    offset: int  # in bytes
    name: str
    time: np.datetime64  # valid time, in seconds
    grid: str  # a digest of its definition
    keys: Mapping[str, Any]
    attributes: Mapping[str, str]
    seconds: int  # of an accumulation, 0 for what is none and where the file does not tell
    factor: float = 1.0  # from the file's units to those of `attributes`


@dataclass(frozen=True)
class GribFile:
    """One GRIB file; its frames are the valid times of the wanted variables, ascending."""

    name: str
    times: np.ndarray
    options: GriddedOptions
    shape: tuple[int, int]  # rows and columns
    conversions: Mapping[str, Conversion]

    def read(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        """Return the variables `(time, y, x)` of the wanted frames and cells, NaN where a variable has no message."""
        return decode(self.name, self.options.decoding, self._decoded, frames, y, x)

    def _decoded(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        chosen = _chosen(self.name, self.options)
        places = _places(list(chosen.values()))
        absent = np.full(self.shape, np.nan)[y, x]
        values, units, refused = {}, {}, {}
        for name in self.options.variables:
            messages = _numbered(chosen[name])
            units[name] = self.options.units_of(name) or chosen[name][0].attributes.get("units", "")
            read = [_cut(self.name, messages.get(places[frame]), y, x) for frame in frames]
            stacked = np.stack([absent if field is None else field for field in read])
            values[name], refused[name] = without_impossible(stacked)
        return converted(fields(self.times[frames], values, units, refused), self.conversions)


def whole_grib(path: str) -> str:
    """Return `path`; raise `InputError` where it is no GRIB file or its end is missing."""
    with Path(path).open("rb") as stream:
        if stream.read(4) != b"GRIB":
            raise InputError(f"{path}: no GRIB file: correct source.path or source.engine")
        stream.seek(-min(4096, Path(path).stat().st_size), 2)
        if not stream.read().rstrip(b"\x00").endswith(b"7777"):
            raise InputError(f"{path}: truncated file, its last GRIB message has no end: replace the file")
    return path


def grib_header(path: str, options: GriddedOptions) -> Header:
    """Return times and grid of a file; raise `InputError` for a broken message and for levels that share a time."""
    chosen = _chosen(path, options)
    times = np.array([time for time, _ in _places(list(chosen.values()))], "datetime64[ns]")
    first = chosen[options.variables[0]][0]
    with _opened(path, first) as handle:
        y, x, crs = grid_of(path, handle)
        institution = get(handle, "centreDescription")
    y, x = check_axis(path, Y, y), check_axis(path, X, x)
    attributes = {name: dict(messages[0].attributes) for name, messages in chosen.items()}
    return Header(
        path, times, grid_template(y, x, attributes, {"institution": institution} if institution else {}, crs)
    )


def _places(chosen: Sequence[Sequence[Message]]) -> list[tuple[np.datetime64, int]]:
    """Return valid time and occurrence of each frame, ascending: a time that a variable has twice is two frames."""
    return sorted({place for messages in chosen for place in _numbered(messages)})


def _numbered(messages: Sequence[Message]) -> dict[tuple[np.datetime64, int], Message]:
    counts: dict[np.datetime64, int] = {}
    numbered = {}
    for message in messages:
        count = counts.get(message.time, 0)
        numbered[message.time, count] = message
        counts[message.time] = count + 1
    return numbered


def _chosen(path: str, options: GriddedOptions) -> dict[str, list[Message]]:
    """Return the messages of each wanted variable, of one level and one member."""
    messages = messages_of(path, tuple(sorted(options.select)))
    names = sorted({message.name for message in messages})
    for key in options.select:
        if key != "number" and all(_level(message, key) is None for message in messages):
            raise InputError(f"{path}: source.select names '{key}', which no message has: correct it")
    chosen = {}
    for name in options.variables:
        own = [message for message in messages if name in (message.name, message.keys["shortName"])]
        if not own:
            raise InputError(f"{path}: no variable '{name}', found {', '.join(names)}: correct source.variables")
        chosen[name] = _as_rates(path, name, _one_level(path, name, own, options.select), options)
    first = chosen[options.variables[0]][0]
    for message in (each for some in chosen.values() for each in some):
        if message.grid != first.grid:
            raise InputError(
                f"{path}: GRIB message {message.number} ('{message.name}') has another grid than message "
                f"{first.number} ('{first.name}'): keep fields of different grids apart"
            )
    return chosen


def _as_rates(path: str, name: str, messages: list[Message], options: GriddedOptions) -> list[Message]:
    """Return sums over time as rates, other messages as they are; raise `InputError` for a sum of unknown period.

    Accumulations of an analysis that are coded without a period are taken for sums over the step of their times: so
    come reanalyses that have been through other formats. In a forecast such a field may be summed since its start.
    """
    first, minutes = messages[0], options.accumulated_minutes.get(name)
    units = first.attributes.get("units")
    is_sum = units in RATES and (first.keys["stepType"] == "accum" or first.keys["shortName"] in KNOWN)
    if options.units_of(name) or not (is_sum or minutes):
        return messages
    require_rate(path, name, units)
    if minutes is None and first.keys["stepType"] == "instant" and first.keys["marsType"] == "an":
        times = np.unique([message.time for message in messages])
        seconds = np.diff(times).min() / np.timedelta64(1, "s") if times.size > 1 else 0
        messages = [replace(message, seconds=int(seconds)) for message in messages]
    elif minutes is not None:
        messages = [replace(message, seconds=60 * minutes) for message in messages]
    rates = []
    for message in messages:
        if message.seconds:  # the sum over no time at a forecast's start is no rate
            attributes, factor = as_rate(message.attributes, message.seconds)
            rates.append(replace(message, attributes=attributes, factor=factor))
    if not rates:
        raise unknown_period(path, name)
    return rates


def _one_level(path: str, name: str, messages: list[Message], select: Mapping[str, Any]) -> list[Message]:
    if "number" in select and all(message.keys["number"] is None for message in messages):
        messages = _members_by_order(messages)
    for key, wanted in select.items():
        found = {_level(message, key) for message in messages} - {None}
        kept = [message for message in messages if is_label(_level(message, key), wanted)]
        if found and not kept:
            raise InputError(
                f"{path}: source.select.{key} is {wanted}, '{name}' has {_list(found)}: choose one of them"
            )
        messages = kept or messages
    for key in LEVELS:
        found = {message.keys[key] for message in messages}
        if len(found) > 1:
            raise InputError(
                f"{path}: '{name}' has {key} {_list(found)}: choose one by source.select, such as "
                f"{{{key}: {sorted(map(str, found))[0]}}}"
            )
    return messages


def _members_by_order(messages: Sequence[Message]) -> list[Message]:
    """Return messages that name no member, those of one time numbered from 0 in file order."""
    by_place = _numbered(messages)
    return [replace(message, keys={**message.keys, "number": count}) for (_, count), message in by_place.items()]


def _level(message: Message, key: str) -> Any:
    """Return what a message has for a key of `source.select`; a type of level stands for its level."""
    return message.keys["level"] if key == message.keys["typeOfLevel"] else message.keys.get(key)


def _list(found: set[Any]) -> str:
    return ", ".join(map(str, sorted(found, key=lambda value: (str(type(value)), value))))


def messages_of(path: str, more: tuple[str, ...] = ()) -> tuple[Message, ...]:
    """Return the header of every message, with `more` of its keys; raise `InputError` for a broken one."""
    status = Path(path).stat()
    return _messages(path, more, (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=64)
def _messages(path: str, more: tuple[str, ...], state: tuple[int, int]) -> tuple[Message, ...]:
    """Return the header of every message; `state`: its size, and for the cache alone its time of change."""
    import eccodes

    found: list[Message] = []
    end = 0
    with LOCK, Path(path).open("rb") as stream, Path(path).open("rb") as gaps:
        while True:
            number = len(found) + 1
            try:
                handle = eccodes.codes_grib_new_from_file(stream, headers_only=False)
                start = state[0] if handle is None else int(get(handle, "offset"))
                gaps.seek(end)
                if END in gaps.read(start - end):  # ecCodes passes over what does not begin as a message
                    raise InputError(f"{path}: GRIB message {number} is broken (byte {end} on): replace the file")
                if handle is None:
                    return tuple(found)
                try:
                    found.append(message_of(handle, number, more))
                    end = start + int(get(handle, "totalLength"))
                finally:
                    eccodes.codes_release(handle)
            except InputError:
                raise
            except (eccodes.CodesInternalError, ValueError) as error:
                raise InputError(
                    f"{path}: GRIB message {number} is broken ({one_line(error)}): replace the file"
                ) from error


def message_of(handle: Any, number: int, more: tuple[str, ...] = ()) -> Message:
    """Return the header of a message, with `more` of its keys."""
    keys = {key: get(handle, key) for key in (*LEVELS, "shortName", "marsType", *more)}
    keys["stepType"] = keys["stepType"] or "instant"
    name = str(get(handle, "cfVarName") or keys["shortName"])
    day, clock = int(get(handle, "validityDate")), int(get(handle, "validityTime"))
    text = f"{day // 10000:04d}-{day // 100 % 100:02d}-{day % 100:02d}T{clock // 100:02d}:{clock % 100:02d}"
    second = int(get(handle, "second") or 0)
    attributes = {
        "units": get(handle, "units"),
        "standard_name": get(handle, "cfName"),
        "long_name": get(handle, "name"),
    }
    attributes = {key: str(value) for key, value in attributes.items() if value and value != "unknown"}
    time = np.datetime64(text, "s") + np.timedelta64(second, "s")
    seconds = _period_seconds(handle, str(keys["stepType"]))
    grid = str(get(handle, "md5GridSection"))
    return Message(number, int(get(handle, "offset")), name, time, grid, keys, attributes, seconds)


def _period_seconds(handle: Any, step_type: str) -> int:
    """Return the length of an accumulation, 0 for what is none."""
    if step_type != "accum":
        return 0
    if get(handle, "marsClass") == "ea":
        return ERA5_PERIOD_SECONDS.get(str(get(handle, "marsStream")), 3600)
    unit = {0: 60, 1: 3600, 2: 86_400, 10: 10_800, 11: 21_600, 12: 43_200, 13: 1}.get(
        get(handle, "stepUnits", int), 3600
    )
    return unit * max(int(get(handle, "endStep", int)) - int(get(handle, "startStep", int)), 0)


def get(handle: Any, key: str, kind: type | None = None) -> Any:
    """Return a key of a message; None where it has none of that name."""
    import eccodes

    if not eccodes.codes_is_defined(handle, key):
        return None
    return eccodes.codes_get(handle, key, kind)


@contextmanager
def _opened(path: str, message: Message) -> Iterator[Any]:
    import eccodes

    with LOCK, Path(path).open("rb") as stream:
        stream.seek(message.offset)
        try:
            handle = eccodes.codes_grib_new_from_file(stream)
            try:
                yield handle
            finally:
                eccodes.codes_release(handle)
        except eccodes.CodesInternalError as error:
            raise InputError(
                f"{path}: GRIB message {message.number} cannot be read ({one_line(error)}): replace the file"
            ) from error


def _cut(path: str, message: Message | None, y: slice, x: slice) -> np.ndarray | None:
    """Return the wanted cells of a field in the order of its coordinates, NaN where the bitmap has none."""
    if message is None:
        return None
    with _opened(path, message) as handle:
        return np.asarray(field_of(handle)[y, x] * message.factor)


def field_of(handle: Any) -> np.ndarray:
    """Return the values of a message (y, x) in the order of its coordinates, NaN where the bitmap has none."""
    import eccodes

    values = eccodes.codes_get_values(handle)
    if get(handle, "bitmapPresent"):
        values = np.where(values == get(handle, "missingValue", float), np.nan, values)
    rows, columns = int(get(handle, "Ny")), int(get(handle, "Nx"))
    field: np.ndarray = (
        values.reshape(columns, rows).T if get(handle, "jPointsAreConsecutive") else values.reshape(rows, columns)
    )
    if get(handle, "alternativeRowScanning"):
        field = np.where((np.arange(rows) % 2 == 1)[:, None], field[:, ::-1], field)
    return field


def grid_of(path: str, handle: Any) -> tuple[xr.Variable, xr.Variable, pyproj.CRS | None]:
    """Return y, x and the CRS of a field; a plain latitude-longitude grid has none."""
    kind = get(handle, "gridType")
    if kind in ("regular_ll", "rotated_ll", "regular_gg"):
        return *_degrees(handle, kind), _rotated(handle) if kind == "rotated_ll" else None
    if not get(handle, "projString") or not get(handle, "Nx"):
        raise InputError(f"{path}: the grid is of type {kind}, expected rows and columns: regrid the file")
    crs = pyproj.CRS.from_user_input(get(handle, "projString"))
    corner = (get(handle, f"{name}OfFirstGridPointInDegrees", float) for name in ("longitude", "latitude"))
    first = pyproj.Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(*corner)
    axes = []
    for axis, start, size, backwards in (
        (Y, first[1], "Ny", not get(handle, "jScansPositively")),
        (X, first[0], "Nx", bool(get(handle, "iScansNegatively"))),
    ):
        step = float(get(handle, f"D{axis}InMetres", float)) * (-1 if backwards else 1)
        attributes = {"units": "m", "standard_name": f"projection_{axis}_coordinate"}
        axes.append(xr.Variable(axis, start + step * np.arange(int(get(handle, size))), attributes))
    return axes[0], axes[1], crs


def _degrees(handle: Any, kind: str) -> tuple[xr.Variable, xr.Variable]:
    ends = {
        name: [float(get(handle, f"{name}Of{end}GridPointInDegrees", float)) for end in ("First", "Last")]
        for name in ("latitude", "longitude")
    }
    y = np.linspace(ends["latitude"][0], ends["latitude"][1], int(get(handle, "Ny")))
    if kind == "regular_gg":
        import eccodes

        y = np.sort(eccodes.codes_get_double_array(handle, "distinctLatitudes"))
        y = y if ends["latitude"][0] < ends["latitude"][1] else y[::-1]
    west, east = ends["longitude"]
    if get(handle, "iScansNegatively"):
        east -= 360 * (east > west)
    else:
        west -= 360 * (west > east)
    x = np.linspace(west, east, int(get(handle, "Nx")))
    attributes = (ROTATED_LATITUDE, ROTATED_LONGITUDE) if kind == "rotated_ll" else (LATITUDE, LONGITUDE)
    return xr.Variable(Y, y, attributes[0]), xr.Variable(X, x, attributes[1])


def _rotated(handle: Any) -> pyproj.CRS:
    south, east = (get(handle, f"{name}OfSouthernPoleInDegrees", float) for name in ("latitude", "longitude"))
    return pyproj.CRS.from_cf(
        {
            "grid_mapping_name": "rotated_latitude_longitude",
            "grid_north_pole_latitude": -float(south),
            "grid_north_pole_longitude": float((east + 360) % 360 - 180),
            "north_pole_grid_longitude": float(get(handle, "angleOfRotation", float) or 0.0),
        }
    )
