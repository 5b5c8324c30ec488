import json

import numpy as np
import pyproj
import pytest
import rasterio.features
import xarray as xr

from fieldcast.pipeline.config import StormCell, Verify
from fieldcast.pipeline.datasets.schema import GRID_MAPPING
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.storms.geojson import Place, feature_collection, outlines

WANTED = Verify(storm_cells={"rain_rate": StormCell(at_least=5, area_km2=16, within_km=20)})
MERCATOR = pyproj.CRS.from_epsg(32631)  # km here: the grid has units of its own


def forecast(squares: list[tuple[int, int, int]], *, up: bool = True, crs: pyproj.CRS | None = MERCATOR) -> xr.Dataset:
    """Return a forecast of one init time, with a square (first row, first column, side) at each lead of 5 minutes."""
    fields = np.zeros((1, len(squares), 50, 40), np.float32)
    for lead, (y, x, side) in enumerate(squares):
        fields[0, lead, y : y + side, x : x + side] = 8 + lead
    start = np.array(["2024-06-01T12:00"], "datetime64[ns]")
    leads = (np.arange(1, len(squares) + 1) * np.timedelta64(5, "m")).astype("timedelta64[ns]")
    north = np.arange(50) * 2.0 + 5700.0
    made = xr.Dataset(
        {"rain_rate": (("init_time", "lead_time", "y", "x"), fields, {"units": "mm h-1"})},
        {
            "init_time": start,
            "lead_time": leads,
            "y": ("y", north if up else north[::-1], {"units": "km"}),
            "x": ("x", np.arange(40) * 2.0 + 460.0, {"units": "km"}),
        },
    ).assign_coords(valid_time=(("init_time", "lead_time"), start[:, None] + leads))
    return made if crs is None else made.assign_coords(**{GRID_MAPPING: ((), 0, crs.to_cf())})


@pytest.mark.parametrize("up", [True, False])
def test_outlines_are_where_the_grid_cells_are(up: bool) -> None:
    content = feature_collection(forecast([(10, 5, 4), (10, 8, 4), (10, 11, 4)], up=up), WANTED)
    assert json.loads(json.dumps(content)) == content
    features = content["features"]
    assert [feature["properties"]["lead_minutes"] for feature in features] == [5, 10, 15]
    assert {feature["properties"]["id"] for feature in features} == {1}
    to_degrees = pyproj.Transformer.from_crs(MERCATOR, "EPSG:4326", always_xy=True)
    first = features[0]
    ((ring,),) = first["geometry"]["coordinates"]
    rows = (10, 13) if up else (49 - 10, 49 - 13)
    south, north = sorted(5700.0 + 2 * row for row in rows)
    corners = [(469, south - 1), (477, south - 1), (477, north + 1), (469, north + 1)]
    expected = [to_degrees.transform(x * 1000, y * 1000) for x, y in corners]
    assert ring[0] == ring[-1]
    assert len(ring) == 5
    for corner in expected:
        assert np.abs(np.array(ring) - corner).sum(axis=1).min() < 2e-5
    x, y = np.array(ring).T
    assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0  # counterclockwise
    properties = first["properties"]
    assert (properties["area_km2"], properties["highest"], properties["units"]) == (64, 8, "mm/h")
    assert properties["valid_time"] == "2024-06-01T12:05:00Z"
    assert properties["speed_km_h"] == pytest.approx(72, rel=0.01)  # 6 km in 5 minutes, on the ellipsoid
    assert properties["towards"] == pytest.approx(90, abs=2)


def degrees(mask: np.ndarray) -> xr.Dataset:
    """Return a mask (y, x) on a grid of degrees."""
    rows, columns = mask.shape
    y = ("y", 50 + np.arange(rows) * 0.02, {"units": "degrees_north"})
    x = ("x", 4 + np.arange(columns) * 0.03, {"units": "degrees_east"})
    return xr.Dataset({"mask": (("y", "x"), mask.astype(float))}, {"y": y, "x": x})


@pytest.mark.parametrize("share", [0.1, 0.4, 0.6, 0.9, 1.0])
def test_gdal_burns_outlines_into_the_grid_cells_that_they_are_made_of(share: float) -> None:
    """Holes, cells that meet at corners and the border of the grid included."""
    mask = np.random.default_rng(3).random((20, 30)) < share
    geometry = {"type": "MultiPolygon", "coordinates": outlines(mask, Place(degrees(mask)))}
    transform = rasterio.Affine(0.03, 0, 4 - 0.015, 0, 0.02, 50 - 0.01)
    burnt = rasterio.features.rasterize([geometry], mask.shape, transform=transform)
    np.testing.assert_array_equal(burnt == 1, mask)
    corners = np.array([point for polygon in geometry["coordinates"] for ring in polygon for point in ring])
    edges = (corners - [4, 50]) / [0.03, 0.02] + 0.5
    np.testing.assert_allclose(edges, np.rint(edges), atol=1e-3)


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match="no place on Earth"):
        feature_collection(forecast([(10, 5, 4)], crs=None), WANTED)
    with pytest.raises(InputError, match=r"verify\.storm_cells has none of the forecast's variables"):
        feature_collection(forecast([(10, 5, 4)]), Verify())
    assert feature_collection(forecast([(10, 5, 1)]), WANTED)["features"] == []
