"""Foreign HDF5 and Zarr looked at before any value is decoded: what it declares, by which filters, and where it points.

A file of a few kilobytes can declare gigabytes, name a filter that is code on this machine, or point at other files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import InputError

FILTERS = {  # by HDF5's numbers: those that HDF5 itself has; others are plugins
    h5py.h5z.FILTER_DEFLATE: "deflate",
    h5py.h5z.FILTER_SHUFFLE: "shuffle",
    h5py.h5z.FILTER_FLETCHER32: "fletcher32",
    h5py.h5z.FILTER_SZIP: "szip",
    h5py.h5z.FILTER_NBIT: "nbit",
    h5py.h5z.FILTER_SCALEOFFSET: "scaleoffset",
}
CODECS = {  # of Zarr, without those of objects: a pickle is code
    *("bytes", "endian", "transpose", "sharding_indexed", "crc32c", "gzip", "zstd", "blosc", "vlen-utf8", "vlen-bytes"),
    *(
        "zlib",
        "lz4",
        "bz2",
        "lzma",
        "shuffle",
        "delta",
        "fixedscaleoffset",
        "quantize",
        "bitround",
        "packbits",
        "astype",
    ),
    *("adler32", "crc32", "fletcher32", "jenkins_lookup3", "zfpy", "pcodec"),
}
MOST_OBJECTS = 10_000
DEEPEST = 16
SMALL_BYTES = 64 * 2**20  # that a coordinate may declare whatever it holds
MOST_PER_BYTE = 1100  # bytes that a stored byte can become; deflate's limit is 1032
MOST_CHUNK_BYTES = 2**30


def check_hdf5(path: str | Path) -> None:
    """Raise `InputError` where a file holds what is not decoded; raise `OSError` where it is no HDF5."""
    with h5py.File(path, "r") as file:
        for number, (name, dataset) in enumerate(_datasets(path, file)):
            if number >= MOST_OBJECTS:
                raise InputError(f"{path}: more than {MOST_OBJECTS} arrays: take another file")
            _check(f"{path}: '{name.lstrip('/')}'", dataset)


def check_zarr(path: str, storage_options: Mapping[str, Any] | None) -> None:
    """Raise `InputError` for a store with an array that is packed by other codecs than `CODECS`."""
    for name, codecs in store.codecs_of(path, storage_options).items():
        if unknown := {codec for codec in codecs if codec.removeprefix("numcodecs.") not in CODECS}:
            raise InputError(
                f"{path}: '{name}' is packed by {', '.join(sorted(unknown))}, expected {', '.join(sorted(CODECS))}: "
                "pack it anew"
            )


def _datasets(path: str | Path, group: h5py.Group, depth: int = 0) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield all arrays with their names; links to other files are refused, others followed only downwards."""
    if depth > DEEPEST:
        raise InputError(f"{path}: groups deeper than {DEEPEST} levels: take another file")
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise InputError(f"{path}: '{name}' is a link to another file: take a file that holds its data")
        if isinstance(link, h5py.SoftLink):
            continue
        entry = group[name]
        if isinstance(entry, h5py.Group):
            yield from _datasets(path, entry, depth + 1)
        elif isinstance(entry, h5py.Dataset):
            yield str(entry.name), entry


def _check(where: str, dataset: h5py.Dataset) -> None:
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(index) for index in range(properties.get_nfilters())]
    for number, *_, label in filters:
        if number not in FILTERS:
            name = f"{number} ({label.decode('ascii', 'replace')})" if label else number
            raise InputError(
                f"{where} is packed by filter {name}, expected {', '.join(FILTERS.values())}: pack it anew"
            )
    if properties.get_external_count() or dataset.is_virtual:
        raise InputError(f"{where} holds its values in other files: take a file that holds them itself")
    declared, stored = dataset.nbytes, dataset.id.get_storage_size()
    if dataset.ndim <= 2 and declared > SMALL_BYTES + MOST_PER_BYTE * stored:
        raise InputError(f"{where} declares {declared} bytes and holds {stored}: take another file")
    cells = 1
    for size in dataset.chunks or ():
        cells *= size
    if dataset.chunks and cells * dataset.dtype.itemsize > MOST_CHUNK_BYTES:
        raise InputError(f"{where} has chunks of {cells * dataset.dtype.itemsize} bytes: take another file")
