"""Graticule and scale bar against distances and projections by pyproj."""

import numpy as np
import pyproj
import pytest
import xarray as xr

from fieldcast.pipeline.report.overlay import graticule, overlay, scale_bar_km

WGS84 = pyproj.Geod(ellps="WGS84")


def field(y: np.ndarray, x: np.ndarray, units: tuple[str, str], crs: str | None = None) -> xr.DataArray:
    coords = {"y": ("y", y, {"units": units[0]}), "x": ("x", x, {"units": units[1]})}
    if crs is not None:
        coords["spatial_ref"] = ((), 0, {"crs_wkt": pyproj.CRS(crs).to_wkt()})
    return xr.DataArray(np.zeros((y.size, x.size)), coords, ("y", "x"), attrs={"units": "K"})


def test_lines_of_a_grid_in_metres_are_round_kilometres() -> None:
    grid = graticule(field(np.arange(40) * 2000.0, np.arange(64) * 2000.0, ("m", "m")))
    assert grid.text == "20 km"
    upright = sorted({line[0, 0] for line in grid.lines if line[0, 0] == line[1, 0]})
    assert upright == [0.0, 20e3, 40e3, 60e3, 80e3, 100e3, 120e3]
    kilometres = graticule(field(np.arange(40) * 2.0, np.arange(64) * 2.0, ("km", "km")))
    assert kilometres.text == grid.text
    np.testing.assert_allclose(np.concatenate(kilometres.lines) * 1000, np.concatenate(grid.lines))


def test_lines_of_a_projected_grid_are_latitudes_and_longitudes() -> None:
    lambert = "+proj=lcc +lat_1=45 +lat_2=55 +lat_0=50 +lon_0=5 +ellps=WGS84 +units=m"
    axis = np.arange(-400e3, 401e3, 10e3)
    grid = graticule(field(axis[::-1], axis, ("m", "m"), lambert))
    assert grid.text == "2° of latitude, 5° of longitude"
    to_degrees = pyproj.Transformer.from_crs(lambert, "EPSG:4326", always_xy=True)
    for line in grid.lines:
        longitude, latitude = to_degrees.transform(line[:, 0], line[:, 1])
        on_latitude = np.abs(latitude - 2 * np.round(np.mean(latitude) / 2)).max()
        on_longitude = np.abs(longitude - 5 * np.round(np.mean(longitude) / 5)).max()
        assert min(on_latitude, on_longitude) < 0.01


def test_longitudes_go_on_across_the_date_line() -> None:
    grid = graticule(field(np.arange(-20.0, 21.0), np.arange(160.0, 201.0), ("degrees_north", "degrees_east")))
    assert grid.text == "15° of latitude, 15° of longitude"
    upright = sorted({round(float(line[0, 0])) for line in grid.lines if np.ptp(line[:, 0]) < 1e-6})
    assert upright == [165, 180, 195]


@pytest.mark.parametrize("latitude", [0.0, 50.0])
def test_the_bar_is_as_long_as_the_ground_under_it(latitude: float) -> None:
    here = field(latitude + np.arange(-5.0, 6.0) / 10, np.arange(-10.0, 11.0) / 10, ("degrees_north", "degrees_east"))
    length = scale_bar_km(here)
    assert length in (50, 100)
    row = overlay(here, [], (400, 210), 100, bar=True)[199]  # through the middle of the bar
    columns = np.flatnonzero((row[:, 3] > 250) & (row[:, :3].max(axis=1) < 60))
    degrees = columns.size / 400 * 2.1
    _, _, metres = WGS84.inv(0, latitude, degrees, latitude)
    assert metres / 1000 == pytest.approx(length, rel=0.06)


def test_a_grid_without_lengths_has_neither() -> None:
    plain = field(np.arange(5.0), np.arange(7.0), ("", ""))
    assert graticule(plain).lines == ()
    assert scale_bar_km(plain) is None
    assert not overlay(plain, [], (50, 50), 100, bar=True)[..., 3].any()
