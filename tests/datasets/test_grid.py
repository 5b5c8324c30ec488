"""Geometry of grids: every spelling of a unit gives one spacing, for scores, STEPS, weights and maps alike."""

import numpy as np
import pyproj
import pytest
import xarray as xr

from fieldcast.pipeline.datasets import grid
from fieldcast.pipeline.datasets.signature import signature_of
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.report.coastlines import coastlines
from fieldcast.pipeline.report.field_map import axis_label, display
from fieldcast.pipeline.sources.template import grid_template

METRES = ("m", "metre", "metres", "meter", "meters")
KILOMETRES = ("km", "kilometre", "kilometres", "kilometer", "kilometers")
DEGREES = ("degrees_north", "degree_north", "degree_N", "degrees_N", "degreesN", "degrees", "degree")
RD = pyproj.CRS.from_epsg(28992)


def made(units: str, y: list[float], x: list[float], crs: pyproj.CRS | None = None) -> xr.Dataset:
    axes = (xr.Variable(name, values, {"units": units}) for name, values in (("y", y), ("x", x)))
    return grid_template(*axes, {"rain_rate": {"units": "mm h-1"}}, {}, crs)


def of_two_km(units: str) -> xr.Dataset:
    """Return 3 rows from north to south and 4 columns, all 2 km apart, in `units`."""
    size = 2000.0 if units in METRES else 2.0
    return made(units, [2 * size, size, 0.0], [0.0, size, 2 * size, 3 * size])


def height_for_steps(dataset: xr.Dataset) -> float:
    return signature_of(dataset, ["rain_rate"], np.timedelta64(5, "m"), np.datetime64("2024-06-01", "ns")).cell_km


@pytest.mark.parametrize("units", [*METRES, *KILOMETRES])
def test_every_spelling_of_a_length_gives_the_same_spacing_everywhere(units: str) -> None:
    dataset = of_two_km(units)
    assert grid.spacing_km(dataset) == (2.0, 2.0)
    assert height_for_steps(dataset) == 2.0
    assert grid.row_weights(dataset) is None
    assert axis_label(dataset["y"], "y") == "y, km"
    np.testing.assert_array_equal(display(dataset["y"]), [4.0, 2.0, 0.0])


@pytest.mark.parametrize("units", DEGREES)
def test_degrees_are_taken_on_a_sphere(units: str) -> None:
    dataset = made(units, [59.0, 60.0, 61.0], [4.0, 5.0, 6.0])
    y, x = grid.spacing_km(dataset)
    assert y == height_for_steps(dataset) == pytest.approx(6371 * np.pi / 180, rel=1e-5)
    assert x == pytest.approx(y / 2)  # cos 60 degrees
    weights = grid.row_weights(dataset)
    assert weights is not None
    assert weights.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(weights / weights[1], 2 * np.cos(np.deg2rad([59.0, 60.0, 61.0])))
    assert axis_label(dataset["y"], "y") == "latitude, °"


@pytest.mark.parametrize("units", ["1", "", "feet", "K"])
def test_other_units_are_no_lengths(units: str) -> None:
    dataset = of_two_km(units)
    with pytest.raises(InputError, match=r"expected metres, km or degrees; without them leave verify"):
        grid.spacing_km(dataset)
    assert height_for_steps(dataset) == 1.0
    assert axis_label(dataset["y"], "y") == "y, cells"


def test_a_single_row_has_no_spacing() -> None:
    with pytest.raises(InputError, match=r"coordinate 'y' has 1 cell\(s\), expected at least 2"):
        grid.spacing_km(made("km", [1.0], [1.0, 2.0]))
    assert np.isnan(grid.spacing(np.array([1.0])))


def test_degrees_and_lengths_do_not_mix() -> None:
    dataset = made("km", [1.0, 2.0], [1.0, 2.0])
    dataset["y"].attrs["units"] = "degrees_north"
    with pytest.raises(InputError, match=r"\['degrees_north', 'km'\]"):
        grid.spacing_km(dataset)


@pytest.mark.parametrize(("units", "factor"), [("km", 1000.0), ("metres", 1.0), ("1", 1.0)])
def test_axes_are_brought_into_the_units_of_their_crs(units: str, factor: float) -> None:
    assert grid.units_of_crs(of_two_km(units)["x"], RD) == factor
    in_km = pyproj.CRS.from_proj4("+proj=laea +lat_0=52 +lon_0=5 +units=km")
    assert grid.units_of_crs(of_two_km(units)["x"], in_km) == (1.0 if units == "1" else factor / 1000)


def test_coastlines_are_the_same_in_metres_and_kilometres() -> None:
    pytest.importorskip("global_land_mask")
    y, x = np.linspace(400.0, 500.0, 6), np.linspace(50.0, 150.0, 6)  # Dutch grid: the coast of Holland
    lines = {
        units: coastlines(made(units, list(y * size), list(x * size), RD)["rain_rate"])
        for units, size in (("kilometres", 1.0), ("meters", 1000.0))
    }
    assert lines["meters"]
    for one, other in zip(lines["meters"], lines["kilometres"], strict=True):
        np.testing.assert_allclose(one, 1000 * other)
