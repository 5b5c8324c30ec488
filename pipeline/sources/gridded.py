"""NetCDF, GRIB and Zarr archives: one or more variables on a regular grid, any CF time.

The two horizontal dimensions become y and x and keep their CF attributes; dimensions of length 1 are dropped;
accumulations become rates, and each quantity comes in one unit (`units.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import fsspec  # type: ignore[import-untyped]
import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions
from fieldcast.pipeline.datasets.grid import check_axis
from fieldcast.pipeline.datasets.schema import TIME, X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.accumulations import RATES, Sums, as_rate, sums_of
from fieldcast.pipeline.sources.coordinates import cell_degrees, coordinate, crs_of, horizontal, kept
from fieldcast.pipeline.sources.declared import check_hdf5, check_zarr
from fieldcast.pipeline.sources.decoder import decode
from fieldcast.pipeline.sources.files import Header, fetch, find, is_url, one_line, read_headers
from fieldcast.pipeline.sources.grib import GribFile, grib_header, whole_grib
from fieldcast.pipeline.sources.labels import is_label
from fieldcast.pipeline.sources.missing import default_fill, limits_of, require_numbers, without_impossible
from fieldcast.pipeline.sources.template import fields, grid_template
from fieldcast.pipeline.sources.units import Conversion, conversion_of, converted
from fieldcast.pipeline.sources.valid_time import FrameTimes, decoded_times, frame_times, is_time

ENGINES = {".nc": "h5netcdf", ".nc4": "h5netcdf", ".cdf": "h5netcdf", ".h5": "h5netcdf", ".zarr": "zarr"}
ENGINES |= {".grib": "cfgrib", ".grb": "cfgrib", ".grib2": "cfgrib", ".grb2": "cfgrib"}
PATTERNS = [f"*{suffix}" for suffix in ENGINES if suffix != ".zarr"]
KEPT_OF_VARIABLE = ("units", "standard_name", "long_name", "cell_methods", "comment")
KEPT_OF_FILE = ("title", "institution", "source", "references", "comment", "license", "licence")


@dataclass(frozen=True)
class GriddedSource:
    """The files or the Zarr store of one archive, in order of their names."""

    options: GriddedOptions

    @property
    def _headers(self) -> list[Header]:
        if "headers" not in self.__dict__:  # functools.cached_property holds a lock that all sources share
            self.__dict__["headers"] = read_headers(self._header, self.paths(), self.options.decoding)
        known: list[Header] = self.__dict__["headers"]
        return known

    def segments(self) -> Sequence[GriddedFile | GribFile]:
        """Return one segment a file; raise `InputError` for files that are broken or differ in grid or units."""
        return [self._segment(header) for header in self._headers]

    def grid(self) -> xr.Dataset:
        """Return the template: the wanted variables `(0, y, x)` with y, x and CRS of the first file."""
        return self._headers[0].template

    def paths(self) -> list[str]:
        """Return the files of the archive, or its Zarr store; raise `InputError` where there is none."""
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
        if engine_of(path, self.options) == "cfgrib":
            return _in_store_units(grib_header(whole_grib(path), self.options), self.options)
        with opened(path, self.options) as file:
            return _in_store_units(Header(path, file.frames.times, file.template()), self.options)

    def _segment(self, header: Header) -> GriddedFile | GribFile:
        if engine_of(header.path, self.options) == "cfgrib":
            shape = header.template.sizes[Y], header.template.sizes[X]
            return GribFile(header.path, header.times, self.options, shape, header.conversions)
        return GriddedFile(header.path, header.times, self.options, header.conversions)


@dataclass(frozen=True)
class GriddedFile:
    """One NetCDF file, or one Zarr store."""

    name: str
    times: np.ndarray
    options: GriddedOptions
    conversions: Mapping[str, Conversion]

    def read(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        """Return the variables `(time, y, x)` of the wanted frames and cells in the store's units."""
        return decode(self.name, self.options.decoding, self._decoded, frames, y, x)

    def _decoded(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        values, units, refused = {}, {}, {}
        with opened(self.name, self.options) as file:
            for name in self.options.variables:
                units[name] = self.options.units_of(name) or file.units(name)
                try:
                    values[name], refused[name] = file.read(name, frames, y, x)
                except (OSError, EOFError, ValueError, RuntimeError) as error:
                    raise InputError(
                        f"{self.name}: '{name}' cannot be read ({one_line(error)}): replace the file"
                    ) from error
        return converted(fields(self.times[frames], values, units, refused), self.conversions)


@dataclass(frozen=True)
class OpenFile:
    """A file, not loaded, with horizontal dimensions y and x, and its frames."""

    path: str
    dataset: xr.Dataset
    frames: FrameTimes
    variables: Sequence[str]
    names: Mapping[str, str]  # the file's own names of y and x
    sums: Sums  # variables that become rates

    def read(self, name: str, frames: np.ndarray, y: slice, x: slice) -> tuple[np.ndarray, np.ndarray]:
        """Return frames of a variable, float32 `(time, y, x)`, and how many values of each were refused."""
        field = self.dataset[name]
        along = {dim: place[frames] for dim, place in self.frames.places.items() if dim in field.dims}
        chosen: dict[Hashable, Any] = {Y: y, X: x}
        if len(along) == 1:
            chosen |= {dim: _as_slice(places) for dim, places in along.items()}
        elif along:
            chosen |= {dim: xr.DataArray(places, dims=TIME) for dim, places in along.items()}
        cut = field.isel(chosen)
        if not along:
            cut = cut.expand_dims({TIME: frames.size})
        values = cut.transpose(..., Y, X).values
        limits = limits_of(field.attrs, field.encoding)
        clean, refused = without_impossible(values, limits, default_fill(field.encoding))
        if name in self.sums:
            factors = [as_rate(field.attrs, seconds)[1] for seconds in self.sums[name][frames]]
            clean = (clean * np.array(factors)[:, None, None]).astype(np.float32)
        return clean, refused

    def units(self, name: str) -> str:
        """Return the units that a variable is read in."""
        units = str(kept(self.dataset[name].attrs, ("units",)).get("units", "")).strip()
        return RATES[units][0] if name in self.sums else units

    def template(self) -> xr.Dataset:
        """Return the variables `(0, y, x)` with y, x and the CRS."""
        dataset, attributes = self.dataset, {}
        for name in self.variables:
            attributes[name] = kept(dataset[name].attrs, KEPT_OF_VARIABLE)
            limits = limits_of(dataset[name].attrs, dataset[name].encoding)
            factor = 1.0
            if name in self.sums:  # limits of the shortest period hold for all
                attributes[name], factor = as_rate(attributes[name], float(self.sums[name].min()))
            for key, limit in zip(("valid_min", "valid_max"), limits, strict=True):
                attributes[name] |= {} if limit is None else {key: factor * limit}
        y, x = (
            check_axis(self.path, axis, coordinate(self.path, dataset, axis, own), own)
            for axis, own in ((axis, self.names[axis]) for axis in (Y, X))
        )
        crs, degrees = crs_of(self.path, dataset, self.variables[0]), cell_degrees(self.path, dataset)
        return grid_template(y, x, attributes, kept(dataset.attrs, KEPT_OF_FILE), crs, degrees)


def _in_store_units(header: Header, options: GriddedOptions) -> Header:
    """Return a header with the store's units, from those that the file has or the options give.

    Raise `InputError` where a variable has none, or such as it cannot have.
    """
    template, conversions = header.template, {}
    for name in options.variables:
        units = options.units_of(name) or str(template[name].attrs.get("units", "")).strip()
        if not units:
            raise InputError(
                f"{header.path}: '{name}' has no attribute 'units', expected CF units such as 'K': add it to the file "
                f"or set source.units: {{{name}: K}}"
            )
        attributes = {**template[name].attrs, "units": units}
        conversions[name] = conversion_of(header.path, name, attributes, options)
        template[name].attrs = conversions[name].attributes(attributes)
    if options.z_r and not any(conversion.z_r for conversion in conversions.values()):
        found = ", ".join(conversion.source for conversion in conversions.values())
        raise InputError(
            f"{header.path}: source.z_r is for reflectivity in dBZ, the variables are in {found}: leave it out"
        )
    return replace(header, conversions=conversions)


def is_zarr(options: GriddedOptions) -> bool:
    """Return whether the options name one Zarr store."""
    if options.engine != "auto":
        return options.engine == "zarr"
    marks = ("zarr.json", ".zgroup", ".zmetadata")
    return options.path.rstrip("/").endswith(".zarr") or any((Path(options.path) / mark).is_file() for mark in marks)


@contextmanager
def opened(path: str, options: GriddedOptions) -> Iterator[OpenFile]:
    """Yield the file, not loaded; raise `InputError` where the variables have others."""
    engine = engine_of(path, options)
    try:
        raw = open_raw(path, engine, options)
    except InputError:
        raise
    except Exception as error:  # each engine raises its own kinds
        reason = "truncated file" if "truncated" in str(error) else f"cannot be opened as {engine} ({one_line(error)})"
        raise InputError(f"{path}: {reason}: replace the file or correct source.path or source.engine") from error
    try:
        yield _canonical(path, raw, options)
    finally:
        raw.close()


def engine_of(path: str, options: GriddedOptions) -> str:
    """Return what opens a file: 'h5netcdf', 'cfgrib' or 'zarr'; raise `InputError` for an unknown ending."""
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


def open_raw(path: str, engine: str, options: GriddedOptions) -> xr.Dataset:
    """Return a NetCDF file or a Zarr store, not loaded; the group of the variables that `options` name, if any."""
    if engine == "zarr":
        _reach(path, options)
        try:
            return _open_zarr(path, options, consolidated=True)
        except (KeyError, ValueError, FileNotFoundError):  # says nothing of the store itself: many are not consolidated
            return _open_zarr(path, options, consolidated=False)
    with Path(path).open("rb") as stream:
        magic = stream.read(4)
    if magic == b"CDF\x05":
        raise InputError(f"{path}: a CDF-5 file (64-bit data), which is not read: convert it by nccopy -k nc4")
    if magic[:3] == b"CDF":
        try:
            return _open_netcdf(path, "scipy")
        except InputError:
            raise
        except Exception as error:  # scipy meets the end of a file with errors of many kinds
            raise InputError(f"{path}: truncated or broken file (classic NetCDF): replace the file") from error
    if magic != b"\x89HDF":
        raise InputError(f"{path}: no NetCDF file: correct source.path or source.engine")
    check_hdf5(path)
    file = _open_netcdf(path, "h5netcdf")
    wanted = options.variables
    return file if not wanted or wanted[0] in file.data_vars else _in_group(path, file, wanted)


def _open_netcdf(path: str, engine: Literal["h5netcdf", "scipy"]) -> xr.Dataset:
    return decoded_times(path, xr.open_dataset(path, engine=engine, decode_times=False, decode_timedelta=False))


def _in_group(path: str, root: xr.Dataset, variables: Sequence[str]) -> xr.Dataset:
    """Return the one group that holds the variables, with the coordinates of the groups above; else `root`."""
    tree = xr.open_datatree(path, engine="h5netcdf", decode_times=False, decode_timedelta=False)
    holders = [node for node in tree.subtree if set(variables) <= set(map(str, node.data_vars))]
    if len(holders) == 1:
        root.close()
        return decoded_times(path, holders[0].to_dataset(inherit=True))
    names = sorted(f"{node.path.strip('/')}/{name}".strip("/") for node in tree.subtree for name in node.data_vars)
    tree.close()
    raise InputError(
        f"{path}: {'several groups have' if holders else 'no group has'} {', '.join(variables)}, found "
        f"{', '.join(names) or 'no variable'}: correct source.variables"
        if len(list(tree.subtree)) > 1
        else f"{path}: no variable '{_first_missing(variables, names)}', found {', '.join(names) or 'none'}: "
        "correct source.variables"
    )


def _first_missing(variables: Sequence[str], names: Sequence[str]) -> str:
    return next((name for name in variables if name not in names), variables[0])


def _reach(path: str, options: GriddedOptions) -> None:
    """Ask for one file of a store behind a URL: of a server that is down zarr's many requests complain one by one."""
    if is_url(path):
        files, root = fsspec.core.url_to_fs(path, **(options.storage_options or {}))
        with suppress(FileNotFoundError, PermissionError):
            files.info(f"{root}/zarr.json")


def _open_zarr(path: str, options: GriddedOptions, consolidated: bool) -> xr.Dataset:
    storage = options.storage_options if is_url(path) and options.storage_options else None
    check_zarr(path, storage)
    store: xr.Dataset = xr.open_zarr(
        path,
        chunks=None,
        consolidated=consolidated,
        storage_options=storage,
        decode_times=False,
        decode_timedelta=False,
    )
    return decoded_times(path, store)


def _require_variable(path: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise InputError(
            f"{path}: no variable '{name}', found {', '.join(sorted(names)) or 'none'}: correct source.variables"
        )


def _canonical(path: str, raw: xr.Dataset, options: GriddedOptions) -> OpenFile:
    variables = options.variables
    for name in variables:
        _require_variable(path, name, [str(other) for other in raw.data_vars])
    own: Mapping[str, str] = {str(axis): name for axis, name in options.dimensions.items()}
    names = {own.get(axis) or horizontal(path, raw, raw[variables[0]], axis): axis for axis in (Y, X)}
    for given in own.values():
        if given not in raw.variables and given not in raw.dims:
            raise InputError(f"{path}: source.dimensions names '{given}', found {', '.join(map(str, raw.dims))}")
    timed = next((name for name in variables if _has_time(raw, raw[name])), variables[0])
    frames = frame_times(path, raw, raw[timed], own.get(TIME))
    sums, frames = sums_of(path, raw, options, frames)
    dataset = _selected(path, raw, options, {*names, *frames.places})
    taken = [axis for axis in names.values() if axis in {*dataset.dims, *dataset.variables} and axis not in names]
    dataset = dataset.drop_dims(set(taken) & set(dataset.dims)).drop_vars(taken, errors="ignore")
    dataset = dataset.rename({old: new for old, new in names.items() if old != new})
    for name in variables:
        if frames.places and not set(frames.places) <= set(raw[name].dims):
            raise InputError(f"{path}: '{name}' does not change with time: leave it out of source.variables")
        if not {Y, X} <= set(dataset[name].dims):
            raise InputError(
                f"{path}: '{name}' has dimensions {dict(raw[name].sizes)}, expected time and two horizontal ones: "
                "choose another variable"
            )
    for name in variables:
        require_numbers(path, name, dataset[name])
    return OpenFile(path, dataset, frames, variables, {axis: str(name) for name, axis in names.items()}, sums)


def _has_time(raw: xr.Dataset, field: xr.DataArray) -> bool:
    return any(is_time(raw[name]) and set(raw[name].dims) & set(field.dims) for name in raw.variables)


def _selected(path: str, raw: xr.Dataset, options: GriddedOptions, kept: set[str]) -> xr.Dataset:
    """Return the variables with no dimensions but `kept`: of others the one value that `source.select` names."""
    if unknown := set(options.select) - {str(dim) for name in options.variables for dim in raw[name].dims}:
        raise InputError(
            f"{path}: source.select names '{sorted(unknown)[0]}', found dimensions "
            f"{', '.join(map(str, raw[options.variables[0]].dims))}: correct it"
        )
    dataset = raw
    for name in options.variables:
        for dim in map(str, raw[name].dims):
            if dim in kept or dim not in dataset.dims:
                continue
            if dim in options.select:
                dataset = dataset.isel({dim: _position(path, raw, dim, options.select[dim])})
            elif raw.sizes[dim] > 1:
                shown = ", ".join(map(str, labels_of(raw, dim)[:8])) + (", …" if raw.sizes[dim] > 8 else "")
                raise InputError(
                    f"{path}: '{name}' has dimensions {dict(raw[name].sizes)}, expected time and two horizontal ones: "
                    f"choose one of {dim} {shown} by source.select, such as {{{dim}: {labels_of(raw, dim)[0]}}}"
                )
            else:
                dataset = dataset.squeeze(dim)
    return dataset


def _position(path: str, raw: xr.Dataset, dim: str, wanted: Any) -> int:
    labels = labels_of(raw, dim)
    for position, label in enumerate(labels):
        if is_label(label, wanted):
            return position
    shown = f"{wanted:g}" if isinstance(wanted, float) else wanted
    raise InputError(f"{path}: source.select.{dim} is {shown}, found {', '.join(map(str, labels))}: choose one of them")


def labels_of(raw: xr.Dataset, dim: str) -> list[Any]:
    """Return the values along a dimension; positions from 0 where it has none that differ."""
    if dim not in raw.coords:
        return list(range(raw.sizes[dim]))
    values = raw[dim].values.astype(str if raw[dim].dtype.kind in "Mm" else raw[dim].dtype).tolist()
    return values if values and len(set(values)) == len(values) else list(range(raw.sizes[dim]))


def _as_slice(frames: np.ndarray) -> slice | np.ndarray:
    """Return consecutive numbers as a slice, which archives read faster."""
    if frames.size and (np.diff(frames) == 1).all():
        return slice(int(frames[0]), int(frames[-1]) + 1)
    return frames
