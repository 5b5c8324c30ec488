"""Geometry of grids: every spelling of a unit gives one spacing, for scores, STEPS, weights and maps alike."""

import numpy as np
import pyproj
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

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


def axis(values: list[float], units: str | None = "degrees_east", name: str = "x") -> xr.Variable:
    return xr.Variable(name, values, {"units": units} if units else {"standard_name": "longitude"})


def test_longitudes_across_greenwich_and_the_date_line_are_even() -> None:
    across = grid.check_axis("a.nc", "x", axis([350.0, 355.0, 0.0, 5.0, 10.0]))
    np.testing.assert_allclose(across, [-10, -5, 0, 5, 10])
    np.testing.assert_allclose(grid.check_axis("a.nc", "x", axis([178.0, 179.0, -180.0, -179.0])), [178, 179, 180, 181])
    assert grid.spacing(across.values) == 5


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0.0, 1.0, 3.0], "x is uneven, steps of 1 to 2"),
        ([0.0, 2.0, 1.0], "x is out of order at 1"),
        ([0.0, 1.0, 1.0], "x has 1 twice"),
        ([0.0, np.nan, 2.0], "coordinate x: value 2 is missing"),
    ],
)
def test_axes_that_are_no_regular_ones_are_refused(values: list[float], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        grid.check_axis("a.nc", "x", axis(values, "km"))


def test_latitudes_beyond_the_poles_and_radians_are_refused() -> None:
    with pytest.raises(InputError, match=r"a.nc: coordinate lat has 113 degrees, expected -90 to 90"):
        grid.check_axis("a.nc", "y", axis([111.0, 112.0, 113.0]), "lat")
    assert grid.check_axis("a.nc", "y", axis([88.0, 89.0, 90.0])).size == 3
    radians = xr.Variable("y", [0.5, 0.6], {"standard_name": "latitude", "units": "radians"})
    with pytest.raises(InputError, match="coordinate y has units 'radians', expected degrees"):
        grid.check_axis("a.nc", "y", radians)


@given(first=st.floats(-180, 359), step=st.floats(0.01, 5), cells=st.integers(2, 70))
@settings(max_examples=100, deadline=None)
def test_wrapped_longitudes_keep_their_spacing(first: float, step: float, cells: int) -> None:
    plain = first + step * np.arange(cells)
    for wrapped in (plain % 360, (plain + 180) % 360 - 180):
        even = grid.check_axis("a.nc", "x", axis(list(wrapped)))
        assert grid.spacing(even.values) == pytest.approx(step, rel=1e-6)
        np.testing.assert_allclose((even.values - plain + 180) % 360, 180, atol=1e-6)


def test_degrees_are_known_by_name_where_units_are_missing() -> None:
    named = xr.Variable("y", [59.0, 60.0, 61.0], {"standard_name": "latitude"})
    dataset = grid_template(named, axis([4.0, 5.0, 6.0], None), {"t": {"units": "K"}}, {})
    assert grid.spacing_km(dataset)[0] == pytest.approx(grid.KM_PER_DEGREE)
    assert grid.row_weights(dataset) is not None
