import json
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions, RadarOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source
from fieldcast.pipeline.sources.declared import check_hdf5
from tests.sources.archives import write_bom


def small(path: Path) -> Path:
    """Write a NetCDF file that is fine."""
    times = np.datetime64("2024-01-01", "ns") + np.arange(3) * np.timedelta64(1, "h")
    coords = {"time": times, "y": ("y", np.arange(4.0), {"units": "km"}), "x": ("x", np.arange(5.0), {"units": "km"})}
    field = xr.DataArray(np.zeros((3, 4, 5), np.float32), coords, ("time", "y", "x"), attrs={"units": "K"})
    xr.Dataset({"t": field}).to_netcdf(path, engine="h5netcdf")
    return path


def many_times(path: Path) -> None:
    with h5py.File(small(path), "a") as file:
        del file["time"]
        moments = file.create_dataset("time", (30_000_000,), np.int64, chunks=(1_000_000,), compression="gzip")
        moments.attrs["units"] = "hours since 2024-01-01"


def foreign_filter(path: Path) -> None:
    with h5py.File(small(path), "a") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((3, 4, 5))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        shape = h5py.h5s.create_simple((3, 4, 5))
        h5py.h5d.create(file.id, b"packed", h5py.h5t.NATIVE_FLOAT, shape, properties)


def external_link(path: Path) -> None:
    with h5py.File(small(path), "a") as file:
        file["more"] = h5py.ExternalLink("/etc/passwd", "/t")


def external_values(path: Path) -> None:
    with h5py.File(small(path), "a") as file:
        file.create_dataset("more", (3,), np.int8, external=[("/etc/passwd", 0, 3)])


def virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource("/etc/other.h5", "t", (3,))
    with h5py.File(small(path), "a") as file:
        file.create_virtual_dataset("more", layout)


def huge_chunks(path: Path) -> None:
    with h5py.File(small(path), "a") as file:
        file.create_dataset("more", (1, 20_000, 20_000), np.float32, chunks=(1, 20_000, 20_000), compression="gzip")


def deep(path: Path) -> None:
    with h5py.File(small(path), "a") as file:
        file.create_group("/".join("a" * 40))


HOSTILE = [
    (many_times, "'time' declares 240000000 bytes and holds 0"),
    (foreign_filter, "'packed' is packed by filter 32015.*expected deflate, shuffle"),
    (external_link, "'more' is a link to another file"),
    (external_values, "'more' holds its values in other files"),
    (virtual, "'more' holds its values in other files"),
    (huge_chunks, "'more' has chunks of 1600000000 bytes"),
    (deep, "groups deeper than 16 levels"),
]


@pytest.mark.parametrize(("spoil", "expected"), HOSTILE)
def test_hostile_files_are_refused_before_they_are_decoded(
    tmp_path: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    path = tmp_path / "a.nc"
    spoil(path)
    assert path.stat().st_size < 100_000
    started = time.monotonic()
    for options in (
        GriddedOptions(path=str(path), variables=["t"]),
        RadarOptions(path=str(path), format="knmi"),
        RadarOptions(path=str(path), format="bom"),
    ):
        with pytest.raises(InputError, match=expected):
            inspect_source(options)
    assert time.monotonic() - started < 5


def test_ordinary_files_pass(tmp_path: Path) -> None:
    check_hdf5(small(tmp_path / "a.nc"))
    check_hdf5(write_bom(tmp_path / "b.nc", "2020-10-31 06:00"))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("t", data=np.zeros((50, 100, 100)), compression="gzip", shuffle=True, fletcher32=True)
        file["same"] = h5py.SoftLink("/t")
    check_hdf5(tmp_path / "c.h5")


def test_a_store_without_variables_says_so(tmp_path: Path) -> None:
    xr.Dataset().to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(InputError, match="no variable 't', found none: correct"):
        inspect_source(GriddedOptions(path=str(tmp_path / "a.zarr"), variables=["t"]))


def test_a_grid_larger_than_any_is_refused(tmp_path: Path) -> None:
    times = np.datetime64("2024-01-01", "ns") + np.arange(2) * np.timedelta64(1, "h")
    path = tmp_path / "a.nc"
    xr.Dataset(coords={"time": times, "y": np.arange(20_000.0), "x": np.arange(20_000.0)}).to_netcdf(path)
    with h5py.File(path, "a") as file:
        field = file.create_dataset("t", (2, 20_000, 20_000), np.float32, chunks=(1, 100, 100))
        field.attrs["units"] = "K"
        for index, name in enumerate(("time", "y", "x")):
            field.dims[index].attach_scale(file[name])
    with pytest.raises(InputError, match="20000 x 20000 cells, expected at most 100000000"):
        inspect_source(GriddedOptions(path=str(path), variables=["t"]))


def test_a_store_packed_by_code_is_refused(tmp_path: Path) -> None:
    with xr.open_dataset(small(tmp_path / "a.nc")) as dataset:
        dataset.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    options = GriddedOptions(path=str(tmp_path / "a.zarr"), variables=["t"])
    assert inspect_source(options).grid_shape == (4, 5)
    metadata = tmp_path / "a.zarr" / "x" / ".zarray"
    content = json.loads(metadata.read_text())
    metadata.write_text(
        json.dumps(content | {"dtype": "|O", "fill_value": "", "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}]})
    )
    with pytest.raises(InputError, match="'x' is packed by pickle, expected adler32"):
        inspect_source(options)
