"""Every cell, corner and time of real composites as an independent reader has them."""

import gzip
import struct
from pathlib import Path

import h5py
import numpy as np
import pyproj
import pytest
import xarray as xr
from PIL import Image
from pysteps.io import importers

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.sources import inspect_source, open_source


def radar(archive: Path, path: str, kind: str, **more: object) -> RadarOptions:
    return RadarOptions.model_validate({"path": str(archive / "radar" / path), "format": kind, **more})


def read(options: RadarOptions) -> tuple[str, xr.Dataset, xr.Dataset]:
    """Return the name of the first file, its frame, and the grid."""
    source = open_source(options)
    first = source.segments()[0]
    return first.name, first.read(np.array([0]), slice(None), slice(None)), source.grid()


def edges(grid: xr.Dataset) -> list[float]:
    """Return left, right, lower and upper edge of the outer cells."""
    found = []
    for axis in (grid.x.values, grid.y.values):
        half = abs(axis[1] - axis[0]) / 2
        found += [axis.min() - half, axis.max() + half]
    return found


def corner(grid: xr.Dataset, x: float, y: float) -> list[float]:
    """Return longitude and latitude of a point."""
    return list(pyproj.Proj(pyproj.CRS.from_wkt(grid.spatial_ref.attrs["crs_wkt"]))(x, y, inverse=True))


@pytest.mark.parametrize(
    ("path", "quantity", "frames", "first"),
    [
        ("rmi", "RATE", 39, "2021-07-04T15:50"),
        ("opera/T_PAAH21_C_EUOC_*.hdf", "RATE", 2, "2018-08-24T18:00"),
        ("opera/belgium.comp.hdf", "ACRR", 1, "2019-06-06T00:00"),
    ],
)
def test_odim(archive: Path, path: str, quantity: str, frames: int, first: str) -> None:
    options = radar(archive, path, "odim", quantity=quantity)
    name, frame, grid = read(options)
    expected, _, metadata = importers.import_odim_hdf5(name, qty=quantity)
    np.testing.assert_array_equal(frame.rain_rate.values[0], expected.astype(np.float32))  # the sum is of an hour
    np.testing.assert_allclose(edges(grid), [metadata[side] for side in ("x1", "x2", "y1", "y2")], atol=0.01)
    with h5py.File(name) as file:
        where = file["where"].attrs
        for side, x, y in (("LL", 0, 2), ("UR", 1, 3)):
            degrees = [where[f"{side}_lon"], where[f"{side}_lat"]]
            np.testing.assert_allclose(corner(grid, edges(grid)[x], edges(grid)[y]), degrees, atol=1e-7)
    segments = open_source(options).segments()
    assert len(segments) == frames
    assert segments[0].times[0] == np.datetime64(first)
    assert frame.rain_rate_refused.values == 0


def test_odim_tells_outside_from_dry(archive: Path) -> None:
    """OPERA marks cells outside the radars' range by -9999000 and dry ones by -8888000."""
    name, frame, _ = read(radar(archive, "opera/T_PAAH21_C_EUOC_*.hdf", "odim"))
    with h5py.File(name) as file:
        raw = file["dataset1/data1/data"][:]
    rate = frame.rain_rate.values[0]
    assert ((raw == -9999000) == np.isnan(rate)).all()
    assert (rate[raw == -8888000] == 0).all()
    assert (np.isnan(rate).sum(), (rate == 0).sum()) == (2_085_857, 1_605_989 + 6_055)


def test_rmi_archive(archive: Path) -> None:
    info = inspect_source(radar(archive, "rmi", "odim"))
    assert (info.grid_shape, info.step) == ((700, 700), np.timedelta64(5, "m"))
    assert (info.time_axis.times.size, info.time_axis.present.sum()) == (39, 39)


def test_mrms(archive: Path) -> None:
    """Every cell as ecCodes has it; -3 is no coverage."""
    import eccodes

    options = radar(archive, "mrms", "mrms")
    name, frame, grid = read(options)
    with Path(name).open("rb") as file:
        handle = eccodes.codes_grib_new_from_file(file)
        raw = eccodes.codes_get_values(handle).reshape(3500, 7000)
        latitudes, longitudes = (eccodes.codes_get_array(handle, key) for key in ("latitudes", "longitudes"))
        eccodes.codes_release(handle)
    np.testing.assert_array_equal(frame.rain_rate.values[0], np.where(raw == -3, np.nan, raw).astype(np.float32))
    assert (raw == -3).mean() == pytest.approx(0.358, abs=1e-3)
    assert frame.rain_rate_refused.values == 0
    np.testing.assert_allclose(grid.y, latitudes.reshape(3500, 7000)[:, 0], atol=2e-6)
    np.testing.assert_allclose(grid.x, longitudes.reshape(3500, 7000)[0], atol=5e-6)
    assert grid.rain_rate.attrs["units"] == "mm h-1"
    times = inspect_source(options).time_axis.times
    assert (
        times.astype("datetime64[m]").tolist() == np.arange("2019-06-10T00:00", "2019-06-10T00:06", 2, "M8[m]").tolist()
    )


def test_radolan(archive: Path) -> None:
    """By hand, and as pysteps has it, which takes .01 mm off each amount and knows no gzip."""
    name, frame, grid = read(radar(archive, "radolan", "radolan"))
    raw = gzip.decompress(Path(name).read_bytes())
    values = np.array(struct.unpack("<810000H", raw[raw.index(b"\x03") + 1 :])).reshape(900, 900)
    amounts = np.where(values == 0x2000 + 2500, np.nan, values % 0x1000 / 10)
    np.testing.assert_array_equal(frame.rain_rate.values[0], amounts.astype(np.float32))  # of an hour
    assert (int(np.isnan(amounts).sum()), float(np.nanmax(amounts))) == (165_520, 42.1)
    assert frame.time.values[0] == np.datetime64("2014-08-03T09:50")
    for x, y, degrees in (  # of the outer corners, from DWD's description of the format
        (0, 2, (3.5889, 46.9526)),
        (1, 2, (14.6209, 47.0705)),
        (1, 3, (15.7208, 54.7405)),
        (0, 3, (2.0715, 54.5877)),
    ):
        np.testing.assert_allclose(corner(grid, edges(grid)[x], edges(grid)[y]), degrees, atol=6e-5)
    assert grid.y.values[0] < grid.y.values[1]  # the first row lies in the south


def test_radolan_as_pysteps(archive: Path, tmp_path: Path) -> None:
    """It takes dry cells that a radar further away saw (4096) for 409.6 mm; all others are equal."""
    name, frame, _ = read(radar(archive, "radolan/*0810*", "radolan"))
    plain = tmp_path / "rw"
    plain.write_bytes(gzip.decompress(Path(name).read_bytes()))
    expected, _, _ = importers.import_dwd_radolan(str(plain), "RW")
    raw = np.frombuffer(plain.read_bytes()[-1_620_000:], "<u2").reshape(900, 900)
    assert (frame.rain_rate.values[0][raw == 4096] == 0).all()
    np.testing.assert_allclose(frame.rain_rate.values[0][raw != 4096], expected[raw != 4096] + 0.01, atol=1e-5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pysteps leaves the file open
def test_mch(archive: Path) -> None:
    options = radar(archive, "mch", "mch")
    name, frame, grid = read(options)
    expected, _, metadata = importers.import_mch_gif(name, "AQC", "mm", 5.0)
    np.testing.assert_allclose(frame.rain_rate.values[0], 12 * expected, rtol=1e-6)
    with Image.open(name) as image:
        np.testing.assert_array_equal(np.isnan(frame.rain_rate.values[0]), np.asarray(image) == 255)
    assert edges(grid) == [metadata[side] for side in ("x1", "x2", "y1", "y2")]
    degrees = corner(grid, 600_000, 200_000)  # the old observatory of Bern, in WGS 84 by swisstopo
    np.testing.assert_allclose(degrees, (7.438632, 46.951083), atol=2e-5)
    info = inspect_source(options)
    assert info.time_axis.times[0] == np.datetime64("2015-05-15T15:45")
    assert (info.time_axis.times.size, info.step) == (6, np.timedelta64(5, "m"))
