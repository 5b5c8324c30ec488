"""The only module that knows Zarr chunks and shards: stores of observations and of forecasts on the local disk.

A store is created empty and correctly shaped, then filled block by block, each block whole shards, so that blocks
may be written side by side. A chunk is as many whole fields (y, x), with all their members, as fit in half a megabyte,
one at least (decision 38); a shard is a block of times (or init times): few files, each rewritten whole. Bytes depend
on the content alone: no clock, host or random order. Missing is NaN. Variables come back in the order in which the
store was created with them.

Every chunk and every index of a shard has its CRC-32C, and `finish` lists the files of a complete store in a manifest:
opening a store compares the names and sizes of its files and the bytes of its metadata, reading a chunk compares that
chunk. A file that is gone, or a bit that has flipped, is a `DamagedError` and never a value.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing
from zarr.codecs import Crc32cCodec, ZstdCodec

from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.schema import (
    CONVENTIONS,
    FRAME_PRESENT,
    HORIZONTAL,
    INIT_TIME,
    LEAD_TIME,
    MEMBER,
    TIME,
    TIME_UNITS,
    VALID_TIME,
    X,
    Y,
    check_forecasts,
    check_observations,
    field_names,
    refused_name,
)
from fieldcast.pipeline.errors import InputError, SchemaError

METADATA = "zarr.json"
ORDER = "variable_order"  # attribute of a store whose variables are not in the order of their names
ZSTD_LEVEL = 3
CODECS = (ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec())  # of every array; the checksum is that of the compressed bytes
CHUNK_BYTES = 2**19  # that a chunk of several fields may have, before it is packed
LEAD_UNITS = "minutes"
TIME_ATTRS: dict[str, dict[str, str]] = {
    TIME: {"standard_name": "time", "axis": "T"},
    INIT_TIME: {"standard_name": "forecast_reference_time"},
    LEAD_TIME: {"standard_name": "forecast_period"},
    MEMBER: {"standard_name": "realization"},
    VALID_TIME: {"standard_name": "time"},
}


def create_observations(
    path: Path, grid: xr.Dataset, times: np.ndarray, frame_present: np.ndarray, shard_frames: int
) -> None:
    """Create a store of missing fields: the variables of `grid` `(0, y, x)` along `times` (datetime64[ns])."""
    present = (TIME, frame_present, {"long_name": "The archive has this frame"})
    coords = {TIME: _moments(TIME, times), **_horizontal(grid)}
    sizes = {TIME: times.size, Y: grid.sizes[Y], X: grid.sizes[X]}
    empty = _missing(sizes, field_names(grid), shard_frames)
    fields = {name: xr.Variable(tuple(sizes), array, grid[name].attrs) for name, array in empty.items()}
    template = xr.Dataset(
        {**fields, FRAME_PRESENT: present},
        coords,
        {"Conventions": CONVENTIONS, **grid.attrs},
    )
    _create(path, check_observations(template), shard_frames)


def forecast_grid(observations: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """Return the template that `create_forecasts` takes: variables `names` and their grid, without any time."""
    bare = observations[list(names)].isel({TIME: slice(0, 0)}).drop_vars(TIME)
    return bare.assign_attrs({k: value for k, value in observations.attrs.items() if k in ("source", "institution")})


def create_forecasts(
    path: Path,
    grid: xr.Dataset,
    init_times: np.ndarray,
    lead_times: np.ndarray,
    shard_inits: int,
    attributes: Mapping[str, Any],
    values: Mapping[str, np.ndarray] | None = None,
    members: int | None = None,
) -> None:
    """Create a store of forecasts `(init_time, lead_time, [member,] y, x)` with the variables and grid of `grid`.

    `init_times` are datetime64[ns], `lead_times` whole seconds as timedelta64[ns]; `attributes` join the grid's own.
    The forecasts are `values`, all of them, or missing until `write_block` fills them.
    """
    sizes = _sizes_of_forecasts(grid, init_times, lead_times, members)
    fields = values or _missing(sizes, field_names(grid), shard_inits)
    template = labelled_forecasts(grid, init_times, lead_times, attributes, fields, members)
    _create(path, template, shard_inits)


def labelled_forecasts(
    grid: xr.Dataset,
    init_times: np.ndarray,
    lead_times: np.ndarray,
    attributes: Mapping[str, Any],
    values: Mapping[str, Any],
    members: int | None,
) -> xr.Dataset:
    """Return forecasts, arrays `(init_time, lead_time, [member,] y, x)` by variable, with CF coordinates, checked.

    Grid, units and further attributes are those of `grid`; `attributes` join them.
    """
    dims = tuple(_sizes_of_forecasts(grid, init_times, lead_times, members))
    valid_times = init_times[:, None] + lead_times[None, :]
    coords = {
        INIT_TIME: _moments(INIT_TIME, init_times),
        LEAD_TIME: xr.Variable(LEAD_TIME, lead_times, TIME_ATTRS[LEAD_TIME]),
        VALID_TIME: ((INIT_TIME, LEAD_TIME), valid_times, TIME_ATTRS[VALID_TIME]),
        **({MEMBER: xr.Variable(MEMBER, np.arange(1, members + 1), TIME_ATTRS[MEMBER])} if members else {}),
        **_horizontal(grid),
    }
    fields = {name: xr.Variable(dims, array, grid[name].attrs) for name, array in values.items()}
    return check_forecasts(xr.Dataset(fields, coords, {"Conventions": CONVENTIONS, **grid.attrs, **attributes}))


def _sizes_of_forecasts(
    grid: xr.Dataset, init_times: np.ndarray, lead_times: np.ndarray, members: int | None
) -> dict[str, int]:
    ensemble = {} if members is None else {MEMBER: members}
    return {INIT_TIME: init_times.size, LEAD_TIME: lead_times.size, **ensemble, Y: grid.sizes[Y], X: grid.sizes[X]}


def write_whole(path: Path, dataset: xr.Dataset) -> None:
    """Create a store of all that `dataset` holds, fields `(init_time, …, y, x)`; its manifest is the caller's."""
    _create(path, dataset, 1)
    consolidate(path)


def write_block(path: Path, start: int, block: xr.Dataset) -> None:
    """Fill the fields from position `start` of the first dimension; different blocks may be written at the same time.

    Raise `ValueError` unless `block` begins on a shard's border and ends on one or at the end of the store.
    """
    names = field_names(block)
    with _open(path, chunks=None, finished=False) as stored:
        first, shard, length = _shards(stored)
        stop = start + block.sizes[first]
        if start % shard or (stop % shard and stop != length) or stop > length:
            raise ValueError(f"block [{start}, {stop}) is not on borders of shards of {shard} in {length} steps")
        if sorted(names) != sorted(field_names(stored)):
            raise ValueError(f"block has variables {names}, expected {field_names(stored)}")
        for name in names:
            if block[name].dtype != np.float32 or block[name].dims != stored[name].dims:
                raise ValueError(
                    f"'{name}' is {block[name].dtype} {block[name].dims}, expected float32 {stored[name].dims}"
                )
    bare = xr.Dataset({name: block[name].variable for name in names}).drop_encoding().drop_attrs()
    bare.to_zarr(path, region={first: slice(start, stop)}, mode="r+", consolidated=False)


def add_refused(path: Path, counts: Mapping[str, np.ndarray]) -> None:
    """Add to observations the number of values `(time,)` that were refused, of each variable of which some were."""
    own = dict(zarr.open_group(path, mode="r").attrs)  # which writing to the store replaces
    for name, numbers in counts.items():
        attributes = {"long_name": f"Values of {name} in the archive that were refused as impossible"}
        added = xr.Dataset({refused_name(name): (TIME, numbers.astype(np.int32), attributes)}, attrs=own)
        encoding = {refused_name(name): {"chunks": numbers.shape, "compressors": CODECS}}
        added.to_zarr(path, mode="a", consolidated=False, encoding=encoding)


def consolidate(path: Path) -> None:
    """Copy the metadata of all arrays into the store's own, for a store that changes no more: no folder is listed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")  # not in the format's standard yet
        zarr.consolidate_metadata(str(path))


def finish(path: Path) -> None:
    """Consolidate a store that is complete, and write its manifest, without which nobody opens it."""
    consolidate(path)
    manifest.write(path)


def open_observations(path: Path, chunks: Literal["shards"] | None = None, *, finished: bool = True) -> xr.Dataset:
    """Return the observations, lazily; with `chunks="shards"` as dask arrays whose blocks are whole shards.

    Raise `InputError` when there is no store, `DamagedError` when a file of it has changed, now or when its values are
    read, `SchemaError` when it breaks the schema. A store that is still being written is not `finished`.
    """
    return check_observations(_open(path, chunks, finished))


def open_forecasts(path: Path, chunks: Literal["shards"] | None = None, *, finished: bool = True) -> xr.Dataset:
    """Return the forecasts, lazily, as `open_observations` does; `lead_time` is a timedelta."""
    return check_forecasts(_open(path, chunks, finished))


def open_whole(path: Path) -> xr.Dataset:
    """Return what `write_whole` has stored, lazily, whatever its schema."""
    return _open(path, None, finished=False)


def directory_digest(path: Path) -> str:
    """Return the MD5 that DVC gives a folder, '<32 hex>.dir': that of the sorted list of its files and their MD5s."""
    return _digest_of_list({f.relative_to(path).as_posix(): file_digest(f) for f in path.rglob("*") if f.is_file()})


def digest_of(files: Mapping[str, bytes]) -> str:
    """Return the digest that `directory_digest` gives a folder with these files."""
    return _digest_of_list(
        {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in files.items()}
    )


def file_digest(file: Path) -> str:
    """Return the MD5 of a file, 32 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _digest_of_list(digests: Mapping[str, str]) -> str:
    entries = [{"md5": digests[name], "relpath": name} for name in sorted(digests)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _open(path: Path, chunks: Literal["shards"] | None, finished: bool = True) -> xr.Dataset:
    if not (path / METADATA).is_file() and not (path / manifest.MANIFEST).is_file():
        raise InputError(f"{path}: no such store: run the stage that writes it (dvc repro)")
    if finished:
        manifest.check(path, manifest.read(path), whole=_is_metadata)
    consolidated = b'"consolidated_metadata": {' in (path / METADATA).read_bytes()
    with _naming_damage(path, finished):
        only_leads = {LEAD_TIME: True}  # a variable in seconds, of sunshine for instance, is a number
        dataset = _ordered(xr.open_zarr(path, chunks=None, consolidated=consolidated, decode_timedelta=only_leads))
    if finished:
        dataset = _checked(dataset, path)
    if chunks is None:
        return dataset
    first, shard, _ = _shards(dataset)
    return dataset.chunk({first: shard})


class _CheckedArray(BackendArray):
    """A variable on disk, whose damaged chunks are named when they are read."""

    def __init__(self, variable: xr.Variable, path: Path) -> None:
        self.variable, self.path = variable, path
        self.shape, self.dtype = variable.shape, variable.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        with _naming_damage(self.path):
            values: np.ndarray = self.variable[key].values
        return values


def _checked(dataset: xr.Dataset, path: Path) -> xr.Dataset:
    """Return the dataset with its lazy variables as `_CheckedArray`; those of its dimensions are read already."""
    lazy = {name: it for name, it in dataset.variables.items() if name not in dataset.dims}
    wrapped = {
        name: xr.Variable(it.dims, indexing.LazilyIndexedArray(_CheckedArray(it, path)), it.attrs, it.encoding)
        for name, it in lazy.items()
    }
    return dataset.assign_coords({name: wrapped.pop(name) for name in set(dataset.coords) & set(wrapped)}).assign(
        wrapped
    )


@contextmanager
def _naming_damage(path: Path, finished: bool = True) -> Iterator[None]:
    """Turn an error of a codec into the `DamagedError` that names the file which is not as it was written."""
    try:
        yield
    except Exception:  # damaged bytes may raise anything
        if finished:
            manifest.check(path, manifest.read(path))
        raise


def _is_metadata(name: str) -> bool:
    return name.endswith(METADATA)


def _ordered(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with its variables in the store's order, else by name: a folder lists its members in any."""
    attributes = dict(dataset.attrs)
    order = attributes.pop(ORDER, [])
    data, coords = (
        {
            name: members[name].variable
            for name in [*order, *sorted(set(members) - set(order), key=str)]
            if name in members
        }
        for members in (dataset.data_vars, dataset.coords)
    )
    return xr.Dataset(data, coords, attributes)


def _shards(stored: xr.Dataset) -> tuple[str, int, int]:
    """Return the dimension that shards divide, the steps in a shard and the steps in all."""
    names = field_names(stored)
    if not names:
        raise SchemaError("store: no variable on the grid")
    field = stored[names[0]]
    return str(field.dims[0]), int(field.encoding["shards"][0]), field.shape[0]


def _create(path: Path, template: xr.Dataset, shard: int) -> None:
    """Write everything; fields that are dask arrays, all of them missing, are laid out and stay empty."""
    encoding: dict[str, dict[str, Any]] = {}
    for name in field_names(template):
        array = template[name]
        encoding[name] = {
            "chunks": _chunks(array.sizes, shard),
            "shards": (shard, *array.shape[1:]),
            "_FillValue": np.float32("nan"),
        }
    for name in (TIME, INIT_TIME, VALID_TIME):
        if name in template.coords:
            encoding[name] = {"units": TIME_UNITS, "dtype": "int64", "chunks": template[name].shape}
    if LEAD_TIME in template.coords:
        encoding[LEAD_TIME] = {"units": _lead_units(template), "dtype": "int32", "chunks": template[LEAD_TIME].shape}
    if MEMBER in template.coords:
        encoding[MEMBER] = {"dtype": "int32", "chunks": template[MEMBER].shape}
    if FRAME_PRESENT in template:
        encoding[FRAME_PRESENT] = {"chunks": template[FRAME_PRESENT].shape}
    for each in template.variables:
        encoding.setdefault(str(each), {})["compressors"] = CODECS
    names = field_names(template)
    bare = template.drop_encoding().assign_attrs({ORDER: names} if names != sorted(names) else {})
    bare.to_zarr(path, mode="w", zarr_format=3, consolidated=False, encoding=encoding, compute=False)


def _chunks(sizes: Mapping[Hashable, int], shard: int) -> tuple[int, ...]:
    """Return the chunk of a field: whole grids of as many frames, or leads of one init time, as a chunk may hold."""
    stepped = LEAD_TIME if LEAD_TIME in sizes else TIME
    step_bytes = 4 * prod(size for dim, size in sizes.items() if dim in (MEMBER, Y, X))
    length = sizes[LEAD_TIME] if stepped == LEAD_TIME else shard
    fitting = [n for n in range(1, length + 1) if length % n == 0 and n * step_bytes <= CHUNK_BYTES]
    steps = max(fitting, default=1)
    return tuple(steps if dim == stepped else size if dim in (MEMBER, Y, X) else 1 for dim, size in sizes.items())


def _lead_units(template: xr.Dataset) -> str:
    whole = not (template[LEAD_TIME].values % np.timedelta64(1, "m")).astype(np.int64).any()
    return LEAD_UNITS if whole else "seconds"


def _missing(sizes: Mapping[str, int], names: Sequence[str], shard: int) -> dict[str, Any]:
    """Return arrays of these sizes by name, all NaN, of dask, that nothing computes."""
    import dask.array  # takes a second to import, and readers do without

    shape = tuple(sizes.values())
    empty = dask.array.full(shape, np.nan, dtype=np.float32, chunks=(shard, *shape[1:]))  # type: ignore[no-untyped-call]
    return dict.fromkeys(names, empty)


def _moments(name: str, times: np.ndarray) -> xr.Variable:
    return xr.Variable(name, times.astype("datetime64[ns]"), TIME_ATTRS[name])


def _horizontal(grid: xr.Dataset) -> dict[str, xr.Variable]:
    return {name: grid[name].variable for name in HORIZONTAL if name in grid.coords}


def codecs_of(path: str, storage_options: Mapping[str, Any] | None) -> dict[str, set[str]]:
    """Return the names of the codecs of every array of a Zarr group; no value is decoded."""
    group = zarr.open_group(path, mode="r", storage_options=dict(storage_options) if storage_options else None)
    return {name: _codec_names(array.metadata.to_dict()) for name, array in group.arrays()}


def _codec_names(metadata: Mapping[str, Any]) -> set[str]:
    """Return the names in a codec's or an array's metadata of both Zarr formats; shards have codecs inside."""
    names = {str(metadata[key]) for key in ("name", "id") if key in metadata}
    nested = [metadata.get("configuration"), metadata.get("compressor")]
    nested += [each for key in ("codecs", "index_codecs", "filters") for each in metadata.get(key) or ()]
    return names.union(*(_codec_names(each) for each in nested if isinstance(each, Mapping)))
