"""Places on grids: shares of cells against rasterio and the closed form, coordinates against pyproj, refusals."""

import json
from math import cos, isnan, radians
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.features import rasterize
from rasterio.transform import Affine

from fieldcast.pipeline.datasets.signature import Axis, DataSignature
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.places.areas import Place, cell_shares, read_places
from tests.live.places.files import POINT, SQUARE, feature, write

LAEA = pyproj.CRS.from_epsg(3035)
FINE = 40  # parts of a cell, along each axis, of the brute force


def signature(y: Axis, x: Axis, crs: pyproj.CRS | None = None, **changes: Any) -> DataSignature:
    return DataSignature({"rain_rate": "mm h-1"}, y, x, None if crs is None else crs.to_wkt(), 5, 0, **changes)


KM = signature(Axis(16, 1.0, 31.0, "km"), Axis(16, 1.0, 31.0, "km"))
DEGREES = signature(Axis(21, 60.0, 50.0, "degrees_north"), Axis(31, 0.0, 15.0, "degrees_east"))
EUROPE = signature(Axis(50, 3200.0, 3102.0, "km"), Axis(60, 4300.0, 4418.0, "km"), LAEA)


def test_shares_are_those_of_a_fine_raster() -> None:
    outer = np.array([[1.2, 0.4], [7.9, 1.1], [6.3, 6.6], [3.8, 4.1], [0.7, 5.9], [1.2, 0.4]])
    hole = np.array([[3.1, 2.2], [4.6, 2.3], [4.1, 3.3], [3.1, 2.2]])
    found = cell_shares([outer, hole], (8, 11))
    geometry = {"type": "Polygon", "coordinates": [outer.tolist(), hole.tolist()]}
    to_fine = Affine.translation(-0.5, -0.5) * Affine.scale(1 / FINE)
    fine = rasterize([geometry], out_shape=(8 * FINE, 11 * FINE), transform=to_fine)
    expected = fine.reshape(8, FINE, 11, FINE).mean(axis=(1, 3))
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert 0 < found.sum() < 30


@given(
    st.floats(-0.4, 3.0), st.floats(0.1, 4.0), st.integers(0, 4), st.integers(1, 3),
)  # fmt: skip
def test_shares_of_a_box_are_exact(left: float, width: float, low: int, height: int) -> None:
    bottom, top, right = low - 0.5, low + height - 0.5, left + width
    box = np.array([[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]])
    columns = np.clip(np.minimum(right, np.arange(8) + 0.5) - np.maximum(left, np.arange(8) - 0.5), 0, 1)
    expected = np.zeros((7, 8))
    expected[low : low + height] = columns
    np.testing.assert_allclose(cell_shares([box], (7, 8)), expected, atol=1e-9)


def test_the_mean_of_a_place_is_weighted_by_shares_and_leaves_out_missing_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "places.geojson", feature(SQUARE, "Square"), feature(POINT, "Point"))
    square, point = read_places(path, KM)
    field = np.arange(256.0).reshape(16, 16)
    inside = field[2:5, 2:6]  # 4 to 10 km, and 4 to 12 km, in cells of 2 km
    assert square.of(field) == pytest.approx(inside.mean())
    assert point.of(field) == field[4, 2]
    assert (square.area_km2, square.is_point, point.is_point) == (pytest.approx(48), False, True)
    assert (square.x, square.y) == pytest.approx((8, 7))
    holed = field.copy()
    holed[2, 2:6] = np.nan
    assert square.of(holed) == pytest.approx(inside[1:].mean())
    holed[3:5, 2:4] = np.nan  # eight of twelve
    assert isnan(square.of(holed))
    moved = square.moved(field[None])
    assert moved.shape == (1, 100)
    assert moved[0, 0] == pytest.approx(field[:3, :4].mean())
    assert moved[0, -1] == pytest.approx(field[-3:, -4:].mean())


def test_longitudes_and_latitudes_find_their_cell_on_a_projection(tmp_path: Path) -> None:
    to_degrees = pyproj.Transformer.from_crs(LAEA, "EPSG:4326", always_xy=True)
    corners = [(4320e3, 3150e3), (4340e3, 3150e3), (4340e3, 3160e3), (4320e3, 3160e3), (4320e3, 3150e3)]
    ring = [list(to_degrees.transform(*corner)) for corner in corners]
    path = write(
        tmp_path / "places.geojson",
        feature({"type": "Polygon", "coordinates": [ring]}, "Box"),
        feature({"type": "Point", "coordinates": [*to_degrees.transform(4332e3, 3152e3), 120.0]}, "Gauge"),
    )
    box, gauge = read_places(path, EUROPE)
    assert (gauge.row, gauge.column) == ((3200 - 3152) // 2, (4332 - 4300) // 2)
    assert box.area_km2 == pytest.approx(200, rel=2e-3)
    assert (box.weights.sum(), box.row, box.column) == (pytest.approx(50, rel=1e-3), 20, 10)


def test_latitudes_weigh_by_their_area_and_longitudes_go_round(tmp_path: Path) -> None:
    ring = [[359.75, 52.25], [361.25, 52.25], [361.25, 59.25], [359.75, 59.25], [359.75, 52.25]]
    path = write(tmp_path / "places.geojson", feature({"type": "Polygon", "coordinates": [ring]}, "Strip"))
    (strip,) = read_places(path, DEGREES)
    assert (strip.row, strip.column, strip.weights.shape) == (2, 0, (14, 3))
    latitudes = 60.0 - 0.5 * np.arange(2, 16)
    np.testing.assert_allclose(strip.weights[:, 1], [cos(radians(value)) for value in latitudes])


OUTSIDE = [[1, 1], [40, 1], [1, 9], [1, 1]]
SELF = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"is no GeoJSON .*: export it again"),
        ("[]", r"holds a list, expected a FeatureCollection"),
        (json.dumps(feature(POINT)), r"type is 'Feature', expected a FeatureCollection"),
        ([], r"has no feature, expected a place at least"),
        ([feature(POINT, None)], r"feature 1: name is None, expected a text .*: add 'name'"),
        ([feature(POINT, " ")], r"feature 1: name is ' '"),
        ([feature(POINT), feature(SQUARE)], r"feature 2 has the name 'Town' again: give it another"),
        ([feature({"type": "MultiPolygon", "coordinates": []})], r"feature 1 \('Town'\): geometry is 'MultiPolygon'"),
        ([feature(None)], r"geometry is None, expected Point or Polygon"),
        ([feature({"type": "Point", "coordinates": ["a", 2]})], r"position is \['a', 2\], expected \[longitude"),
        ([feature({"type": "Point", "coordinates": [1]})], r"position is \[1\]"),
        ([feature({"type": "Point", "coordinates": [50, 1]})], r"'Town' lies off the grid at \[50, 1\], .* 0 to 32"),
        ([feature({"type": "Polygon", "coordinates": []})], r"has no ring"),
        ([feature({"type": "Polygon", "coordinates": [SELF[:3]]})], r"ring 1: has 3 positions, expected 4"),
        ([feature({"type": "Polygon", "coordinates": [SELF[:4]]})], r"ends at \[0, 10\], .* \[0, 0\]: close it"),
        ([feature({"type": "Polygon", "coordinates": [SELF]})], r"crosses itself after \[0, 0\]"),
        ([feature({"type": "Polygon", "coordinates": [[[1, 1]] * 4]})], r"encloses no area"),
        ([feature({"type": "Polygon", "coordinates": [OUTSIDE]})], r"off the grid at \[40, 1\]"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_feature_value_and_fix(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "places.geojson"
    if isinstance(content, str):
        path.write_text(content)
    else:
        write(path, *content)
    with pytest.raises(InputError, match=message) as raised:
        read_places(path, KM)
    assert str(raised.value).startswith(f"{path}: ")


def test_off_a_projected_grid_the_borders_are_named_in_degrees(tmp_path: Path) -> None:
    path = write(tmp_path / "places.geojson", feature({"type": "Point", "coordinates": [51.0, 10.5]}))
    with pytest.raises(
        InputError, match=r"off the grid at \[51, 10.5\], expected longitude from 9\.\d+ to 11\.\d+ and lat"
    ):
        read_places(path, EUROPE)


def test_a_grid_that_says_nowhere_where_it_lies_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "places.geojson", feature(POINT))
    located = signature(KM.y, KM.x, located=((50.0, 4.0),))
    with pytest.raises(InputError, match="need a grid whose axes are degrees or have a CRS"):
        read_places(path, located)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\), named by live\.places"):
        read_places(tmp_path / "none.geojson", KM)


def test_places_of_one_shape_share_a_calibration(tmp_path: Path) -> None:
    moved = {"type": "Polygon", "coordinates": [[[x + 6, y + 2] for x, y in SQUARE["coordinates"][0]]]}
    path = write(tmp_path / "places.geojson", feature(SQUARE, "a"), feature(moved, "b"), feature(POINT, "c"))
    places: list[Place] = read_places(path, KM)
    assert places[0].shape_key == places[1].shape_key != places[2].shape_key
    assert places[0].key != places[1].key
