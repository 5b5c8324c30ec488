import importlib.util
from collections.abc import Callable

import numpy as np
import pyproj
import pytest
import xarray as xr
from matplotlib.path import Path as Outline

from fieldcast.pipeline.report.coastlines import coastlines
from fieldcast.pipeline.report.field_map import axis_label

STEREOGRAPHIC = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=0 +a=6378.14 +b=6356.75 +units=km"  # the Dutch radars'


def field(y: np.ndarray, x: np.ndarray, units: str, crs: pyproj.CRS | None = None) -> xr.DataArray:
    coords = {"y": ("y", y, {"units": units}), "x": ("x", x, {"units": units})}
    located = xr.DataArray(np.zeros((y.size, x.size)), coords, ("y", "x"))
    return located if crs is None else located.assign_coords(spatial_ref=((), 0, crs.to_cf()))


def inside(lines: list[np.ndarray], point: tuple[float, float]) -> bool:
    """Tell whether the closed ones of `lines` hold `point`: an odd number of times."""
    closed = [line for line in lines if np.array_equal(line[0], line[-1])]
    return sum(Outline(line).contains_point(point) for line in closed) % 2 == 1


def test_islands_are_where_they_are() -> None:
    lines = coastlines(field(np.arange(57.0, 49.0, -0.25), np.arange(-11.0, 3.0, 0.25), "degrees_north"))
    assert inside(lines, (-8.0, 53.2))  # Athlone
    assert inside(lines, (-4.5, 54.2))  # Isle of Man
    assert not inside(lines, (-5.0, 53.5))  # Irish Sea
    everything = np.concatenate(lines)
    assert everything.min(axis=0) == pytest.approx((-10.6, 49.1), abs=0.1)  # the Blaskets; the grid's edge in France


@pytest.mark.parametrize("unit", ["km", "m"])
def test_a_projected_grid_gets_its_coast_in_its_own_units(unit: str) -> None:
    factor = 1.0 if unit == "km" else 1000.0
    crs = pyproj.CRS.from_proj4(
        STEREOGRAPHIC.replace("+units=km", "+units=m").replace(".14", "140").replace(".75", "750")
    )
    x, y = np.arange(-300, 500, 10.0) * factor, np.arange(-3650, -4415, -10.0) * factor
    lines = coastlines(field(y, x, unit, crs))
    to_grid = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    texel = np.asarray(to_grid.transform(4.72, 53.06)) * factor / 1000  # the shore of an island, 1 km of the mask
    assert np.hypot(*(np.concatenate(lines) - texel).T).min() < 4 * factor
    sea = np.asarray(to_grid.transform(3.3, 53.0)) * factor / 1000
    assert np.hypot(*(np.concatenate(lines) - sea).T).min() > 50 * factor


def test_longitudes_may_run_to_360() -> None:
    y = np.arange(52.0, 56.0, 0.25)
    east, west = (coastlines(field(y, np.arange(start, start + 5, 0.25), "degrees")) for start in (352.0, -8.0))
    assert len(east) == len(west) > 0
    assert np.allclose(np.concatenate(east) - (360, 0), np.concatenate(west), atol=0.02)


def test_a_grid_that_lies_nowhere_has_no_coast(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = np.arange(8.0)
    assert coastlines(field(cells, cells, "km")) == []
    degrees = field(cells + 50, cells, "degrees")
    assert coastlines(degrees)
    monkeypatch.setattr("fieldcast.pipeline.report.coastlines.find_spec", lambda name: None)
    assert coastlines(degrees) == []
    assert importlib.util.find_spec("global_land_mask") is not None


def land_and_sea(lines: list[np.ndarray], place: Callable[[float, float], tuple[float, float]]) -> list[bool]:
    """Return whether Athlone, the Isle of Man, the Irish Sea and the North Sea are inside of coastlines."""
    return [inside(lines, place(*point)) for point in ((-8.0, 53.2), (-4.5, 54.2), (-5.0, 53.5), (3.0, 56.0))]


def test_rotated_poles_have_their_coast_where_it_is() -> None:
    degrees = {"grid_mapping_name": "rotated_latitude_longitude", "grid_north_pole_latitude": 39.25}
    crs = pyproj.CRS.from_cf({**degrees, "grid_north_pole_longitude": -162.0})
    y, x = np.arange(-3.0, 12.0, 0.25), np.arange(-21.0, -5.0, 0.25)
    rotated = field(y, x, "degrees", crs)
    to_grid = pyproj.Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    assert land_and_sea(coastlines(rotated), to_grid.transform) == [True, True, False, False]
    assert axis_label(rotated.y, "y") == "rotated latitude, °"
    assert axis_label(field(y, x, "degrees").y, "y") == "latitude, °"


def test_latitudes_and_longitudes_of_cells_give_a_coast() -> None:
    y, x = np.arange(0.0, 60.0), np.arange(0.0, 70.0)
    j, i = np.meshgrid(y, x, indexing="ij")
    latitude, longitude = 49 + 0.15 * j + 0.02 * i, -12 + 0.25 * i - 0.05 * j
    cells = field(y, x, "1").assign_coords(latitude=(("y", "x"), latitude), longitude=(("y", "x"), longitude))
    matrix = np.linalg.inv([[0.25, -0.05], [0.02, 0.15]])  # of column and row to longitude and latitude

    def place(east: float, north: float) -> tuple[float, float]:
        column, row = matrix @ (east + 12, north - 49)
        return float(column), float(row)

    assert land_and_sea(coastlines(cells), place) == [True, True, False, False]
