"""NetCDF, GRIB and Zarr archives: one or more variables on a regular grid, any CF time.

The two horizontal dimensions become y and x and keep their CF attributes; dimensions of length 1 are dropped; values
keep the archive's units.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions
from fieldcast.pipeline.datasets.schema import TIME, X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.declared import check_hdf5
from fieldcast.pipeline.sources.files import Header, fetch, find, is_url, one_line, read_headers
from fieldcast.pipeline.sources.template import cf_crs, fields, grid_template

ENGINES = {".nc": "h5netcdf", ".nc4": "h5netcdf", ".cdf": "h5netcdf", ".h5": "h5netcdf", ".zarr": "zarr"}
ENGINES |= {".grib": "cfgrib", ".grb": "cfgrib", ".grib2": "cfgrib", ".grb2": "cfgrib"}
PATTERNS = [f"*{suffix}" for suffix in ENGINES if suffix != ".zarr"]
STANDARD_NAMES = {
    Y: ("latitude", "projection_y_coordinate", "grid_latitude"),
    X: ("longitude", "projection_x_coordinate", "grid_longitude"),
}
COMMON_NAMES = {Y: ("y", "lat", "latitude", "rlat", "northing"), X: ("x", "lon", "longitude", "rlon", "easting")}
KEPT_OF_VARIABLE = ("units", "standard_name", "long_name", "cell_methods", "valid_min", "valid_max", "comment")
KEPT_OF_COORDINATE = ("units", "standard_name", "long_name", "axis")
KEPT_OF_FILE = ("title", "institution", "source", "references", "comment", "license", "licence")


@dataclass(frozen=True)
class GriddedSource:
    """The files or the Zarr store of one archive, in order of their names."""

    options: GriddedOptions

    @cached_property
    def _headers(self) -> list[Header]:
        return read_headers(self._header, self._paths())

    def segments(self) -> Sequence[GriddedFile]:
        """Return one segment a file; raise `InputError` for files that are broken or differ in grid or units."""
        return [GriddedFile(header.path, header.times, self.options) for header in self._headers]

    def grid(self) -> xr.Dataset:
        """Return the template: the wanted variables `(0, y, x)` with y, x and CRS of the first file."""
        return self._headers[0].template

    def _paths(self) -> list[str]:
        options = self.options
        zarr = is_zarr(options)
        if options.sha256 and (zarr or not (is_url(options.path) or Path(options.path).is_file())):
            raise InputError(
                f"source.sha256 is for one file, but source.path '{options.path}' is not one: leave it out"
            )
        if zarr:
            return [options.path]
        if is_url(options.path) or options.sha256:
            return [str(fetch(options.path, options.sha256, options.download_folder, options.storage_options))]
        return find(options.path, PATTERNS)

    def _header(self, path: str) -> Header:
        with opened(path, self.options) as dataset:
            return Header(path, _times(path, dataset), _template(path, dataset, self.options.variables))


@dataclass(frozen=True)
class GriddedFile:
    """One file, or one Zarr store."""

    name: str
    times: np.ndarray
    options: GriddedOptions

    def read(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        """Return the variables `(time, y, x)` of the wanted frames and cells in the archive's units."""
        chosen = {TIME: _as_slice(frames), Y: y, X: x}
        units = {}
        values = {}
        with opened(self.name, self.options) as dataset:
            for name in self.options.variables:
                units[name] = dataset[name].attrs.get("units", "")
                try:
                    values[name] = dataset[name].isel(chosen).transpose(TIME, Y, X).values
                except (OSError, EOFError, ValueError, RuntimeError) as error:
                    raise InputError(
                        f"{self.name}: '{name}' cannot be read ({one_line(error)}): replace the file"
                    ) from error
        return fields(self.times[frames], values, units)


def is_zarr(options: GriddedOptions) -> bool:
    """Return whether the options name one Zarr store."""
    if options.engine != "auto":
        return options.engine == "zarr"
    marks = ("zarr.json", ".zgroup", ".zmetadata")
    return options.path.rstrip("/").endswith(".zarr") or any((Path(options.path) / mark).is_file() for mark in marks)


@contextmanager
def opened(path: str, options: GriddedOptions) -> Iterator[xr.Dataset]:
    """Yield the file, not loaded, with dimensions time, y, x; raise `InputError` where the variables have others."""
    engine = _engine(path, options)
    try:
        raw = _open(path, engine, options)
    except InputError:
        raise
    except Exception as error:  # each engine raises its own kinds
        reason = "truncated file" if "truncated" in str(error) else f"cannot be opened as {engine} ({one_line(error)})"
        raise InputError(f"{path}: {reason}: replace the file or correct source.path or source.engine") from error
    try:
        yield _canonical(path, raw, options.variables)
    finally:
        if engine != "cfgrib":  # stays in the cache; holds no open file
            raw.close()


def _engine(path: str, options: GriddedOptions) -> str:
    if options.engine != "auto":
        return options.engine
    if is_zarr(options):
        return "zarr"
    suffix = Path(path.split("?")[0]).suffix.lower()
    if suffix not in ENGINES:
        raise InputError(
            f"{path}: ending '{suffix}' is unknown, expected {' '.join(ENGINES)}: rename it or set source.engine"
        )
    return ENGINES[suffix]


def _open(path: str, engine: str, options: GriddedOptions) -> xr.Dataset:
    if engine == "zarr":
        try:
            return _open_zarr(path, options, consolidated=True)
        except (KeyError, ValueError, FileNotFoundError):  # says nothing of the store itself: many are not consolidated
            return _open_zarr(path, options, consolidated=False)
    with Path(path).open("rb") as stream:
        magic = stream.read(4)
    if engine == "cfgrib":
        _require_whole_grib(path, magic)
        status = Path(path).stat()
        return _open_grib(path, tuple(options.variables), (status.st_size, status.st_mtime_ns))
    if magic[:3] == b"CDF":
        return xr.open_dataset(path, engine="scipy", decode_timedelta=False)
    if magic != b"\x89HDF":
        raise InputError(f"{path}: no NetCDF file: correct source.path or source.engine")
    check_hdf5(path)
    return xr.open_dataset(path, engine="h5netcdf", decode_timedelta=False)


def _open_zarr(path: str, options: GriddedOptions, consolidated: bool) -> xr.Dataset:
    storage = options.storage_options if is_url(path) and options.storage_options else None
    store: xr.Dataset = xr.open_zarr(
        path, chunks=None, consolidated=consolidated, storage_options=storage, decode_timedelta=False
    )
    return store


def _require_whole_grib(path: str, magic: bytes) -> None:
    if magic != b"GRIB":
        raise InputError(f"{path}: no GRIB file: correct source.path or source.engine")
    with Path(path).open("rb") as stream:
        stream.seek(-min(4096, Path(path).stat().st_size), 2)
        if not stream.read().rstrip(b"\x00").endswith(b"7777"):
            raise InputError(f"{path}: truncated file, its last GRIB message has no end: replace the file")


@lru_cache(maxsize=8)
def _open_grib(path: str, variables: tuple[str, ...], state: tuple[int, int]) -> xr.Dataset:
    """Return the variables, each from its own messages, so that different levels in one file do not collide.

    `state`, size and time of change, is there for the cache alone: a file that grows is opened anew.
    """

    def open_messages(keys: Mapping[str, str]) -> xr.Dataset:
        backend = {"indexpath": "", "filter_by_keys": dict(keys), "squeeze": True}
        return xr.open_dataset(path, engine="cfgrib", backend_kwargs=backend, decode_timedelta=False)

    datasets = []
    for name in variables:
        dataset = open_messages({"cfVarName": name})
        if name not in dataset:
            _require_variable(path, name, [str(other) for other in open_messages({}).data_vars])
        datasets.append(dataset[[name]].reset_coords(drop=True))
    return xr.merge(datasets, join="exact", compat="override", combine_attrs="drop_conflicts")


def _require_variable(path: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise InputError(f"{path}: no variable '{name}', found {', '.join(sorted(names))}: correct source.variables")


def _canonical(path: str, raw: xr.Dataset, variables: Sequence[str]) -> xr.Dataset:
    for name in variables:
        _require_variable(path, name, [str(other) for other in raw.data_vars])
    first = raw[variables[0]]
    names = {_horizontal(path, raw, first, axis): axis for axis in (Y, X)}
    stamp = _time_name(path, raw, first)
    dataset = raw
    if stamp not in raw.dims:  # one file a frame
        dataset = dataset.squeeze(raw[stamp].dims, drop=False).expand_dims({stamp: np.atleast_1d(raw[stamp].values)})
    dataset = dataset.rename({old: new for old, new in {**names, stamp: TIME}.items() if old != new})
    for name in variables:
        if TIME not in dataset[name].dims:
            raise InputError(f"{path}: '{name}' does not change with time: leave it out of source.variables")
        extra = [dim for dim in dataset[name].dims if dim not in (TIME, Y, X)]
        if any(dataset.sizes[dim] > 1 for dim in extra) or not {Y, X} <= set(dataset[name].dims):
            raise InputError(
                f"{path}: '{name}' has dimensions {dict(raw[name].sizes)}, expected time and two horizontal ones: "
                "choose another variable or select one level beforehand"
            )
        dataset = dataset.squeeze(extra, drop=True)
    return dataset


def _horizontal(path: str, raw: xr.Dataset, field: xr.DataArray, axis: str) -> str:
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


def _time_name(path: str, raw: xr.Dataset, field: xr.DataArray) -> str:
    """Return the name of the CF time: a dimension of the field, else a single value of the file."""
    moments = [name for name in raw.variables if _is_time(raw[name])]
    along: list[Hashable] = [name for name in moments if name in field.dims]
    single = [name for name in moments if raw[name].size == 1]
    single.sort(key=lambda name: (raw[name].attrs.get("standard_name") != "time", name != TIME))
    if not along and not single:
        raise InputError(f"{path}: '{field.name}' has no CF time (units such as 'hours since …'): add one to the file")
    return str((along or single)[0])


def _is_time(array: xr.DataArray) -> bool:
    return bool(np.issubdtype(array.dtype, np.datetime64)) or isinstance(
        array.to_index() if array.ndim == 1 and array.dtype == object else None, xr.CFTimeIndex
    )


def _times(path: str, dataset: xr.Dataset) -> np.ndarray:
    """Return the times as datetime64[ns]; dates of other calendars keep their year, month and day."""
    index = dataset[TIME].to_index()
    if isinstance(index, xr.CFTimeIndex):
        try:
            index = index.to_datetimeindex(unsafe=True, time_unit="ns")
        except ValueError as error:
            raise InputError(f"{path}: a time is no date of the standard calendar ({one_line(error)})") from error
    return np.asarray(index.values, "datetime64[ns]")


def _template(path: str, dataset: xr.Dataset, variables: Sequence[str]) -> xr.Dataset:
    attributes = {}
    for name in variables:
        attrs = _kept(dataset[name].attrs, KEPT_OF_VARIABLE)
        if "units" not in attrs:
            raise InputError(
                f"{path}: '{name}' has no attribute 'units', expected CF units such as 'K': add it to the file"
            )
        attributes[name] = attrs
    y, x = (_coordinate(dataset, axis) for axis in (Y, X))
    return grid_template(y, x, attributes, _kept(dataset.attrs, KEPT_OF_FILE), _crs(dataset, variables[0]))


def _coordinate(dataset: xr.Dataset, axis: str) -> xr.Variable:
    if axis not in dataset.coords:  # a curvilinear grid: rows and columns are all there is
        return xr.Variable(axis, np.arange(dataset.sizes[axis], dtype=float), {"units": "1", "long_name": "cell"})
    return xr.Variable(axis, dataset[axis].values.astype(float), _kept(dataset[axis].attrs, KEPT_OF_COORDINATE))


def _kept(attrs: Mapping[Any, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: _plain(attrs[name]) for name in names if name in attrs and attrs[name] != "unknown"}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _crs(dataset: xr.Dataset, name: str) -> pyproj.CRS | None:
    mapping = dataset[name].attrs.get("grid_mapping") or dataset[name].encoding.get("grid_mapping")
    if not mapping or mapping not in dataset.variables:
        return None
    attrs = {str(key): _plain(value) for key, value in dataset[mapping].attrs.items()}
    return cf_crs(json.dumps(attrs))


def _as_slice(frames: np.ndarray) -> slice | np.ndarray:
    """Return consecutive numbers as a slice, which archives read faster."""
    if frames.size and (np.diff(frames) == 1).all():
        return slice(int(frames[0]), int(frames[-1]) + 1)
    return frames
