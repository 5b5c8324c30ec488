"""Every cell, corner and time of real composites as an independent reader has them."""

from pathlib import Path

import h5py
import numpy as np
import pyproj
import pytest
import xarray as xr
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
