"""Where cells are: projected and rotated GRIB, latitudes and longitudes of cells, stores without units."""

import json

import numpy as np
import pyproj
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import Crop, GriddedOptions, IngestOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.grid import crs_wkt, row_weights, spacing_km
from fieldcast.pipeline.datasets.signature import DataSignature, compare_signatures, signature_of
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.ingest import ingest
from fieldcast.pipeline.live.clock import parse
from fieldcast.pipeline.live.feed import frame_file
from fieldcast.pipeline.sources import inspect_source
from tests.sources import gribs

NY, NX = 5, 7
CORNER = {"latitudeOfFirstGridPointInDegrees": 47.0, "longitudeOfFirstGridPointInDegrees": 5.0}
METRES = {"Nx": NX, "Ny": NY, "DxInMetres": 3000, "DyInMetres": 2000, "jScansPositively": 1, "shapeOfTheEarth": 6}
CONES = {"LaDInDegrees": 48.0, "LoVInDegrees": 10.0, "Latin1InDegrees": 50.0, "Latin2InDegrees": 46.0}
ROTATED = {
    "gridType": "rotated_ll",
    **{"Ni": NX, "Nj": NY, "jScansPositively": 1, "iDirectionIncrementInDegrees": 1, "jDirectionIncrementInDegrees": 1},
    **{"latitudeOfFirstGridPointInDegrees": -2, "latitudeOfLastGridPointInDegrees": 2},
    **{"longitudeOfFirstGridPointInDegrees": 355, "longitudeOfLastGridPointInDegrees": 1},
    **{"latitudeOfSouthernPoleInDegrees": -40, "longitudeOfSouthernPoleInDegrees": 10},
}
GRIDS = {
    "lambert": {"gridType": "lambert", **METRES, **CORNER, **CONES},
    "polar_stereographic": {
        "gridType": "polar_stereographic",
        **METRES,
        **CORNER,
        **{"LaDInDegrees": 60.0, "orientationOfTheGridInDegrees": 10.0},
    },
    "rotated_ll": ROTATED,
}


def values(hour: int) -> np.ndarray:
    return 280.0 + hour + np.arange(NY * NX).reshape(NY, NX) / 8


def made(tmp_path, grid) -> GriddedOptions:
    hours = [({**grid, **gribs.SCREEN, **gribs.DAY, "dataTime": 100 * hour}, values(hour)) for hour in range(3)]
    gribs.write(tmp_path / "a.grib2", hours)
    return GriddedOptions.model_validate({"path": str(tmp_path / "a.grib2"), "variables": ["t2m"]})


def ingested(tmp_path, source: GriddedOptions) -> xr.Dataset:
    ingest(source, IngestOptions(shard_frames=8), tmp_path / "o.zarr")
    return store.open_observations(tmp_path / "o.zarr").load()


def located(grid: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return latitude and longitude of the cells, flat, by axes and CRS alone."""
    crs = pyproj.CRS.from_wkt(crs_wkt(grid))
    base = pyproj.CRS.from_epsg(4326) if crs.is_derived else crs.geodetic_crs
    longitude, latitude = pyproj.Transformer.from_crs(crs, base, always_xy=True).transform(
        *np.meshgrid(grid.x.values, grid.y.values)
    )
    return latitude.ravel(), longitude.ravel()


@pytest.mark.parametrize("kind", GRIDS)
def test_axes_and_crs_of_grib_say_where_its_cells_are(tmp_path, kind):
    observed = ingested(tmp_path, made(tmp_path, GRIDS[kind]))
    expected = gribs.degrees(tmp_path / "a.grib2")
    for found, wanted in zip(located(observed), expected, strict=True):
        np.testing.assert_allclose((found - wanted + 180) % 360 - 180, 0, atol=1e-5)
    for hour in range(3):
        np.testing.assert_allclose(observed.t2m.values[hour], values(hour), atol=0.01)
    if kind == "rotated_ll":
        np.testing.assert_allclose(observed.x, np.arange(-5, 2))
        assert row_weights(observed) is not None
    else:
        assert spacing_km(observed) == pytest.approx((2, 3))


def test_rows_that_scan_southwards_go_south(tmp_path):
    observed = ingested(tmp_path, made(tmp_path, {**GRIDS["lambert"], "jScansPositively": 0}))
    np.testing.assert_allclose(np.diff(observed.y), -2000)
    assert (np.diff(located(observed)[0].reshape(NY, NX)[:, 0]) < 0).all()


def curvilinear(tmp_path, **attributes: dict[str, str]) -> tuple[GriddedOptions, np.ndarray, np.ndarray]:
    """Write a grid whose cells have latitudes and longitudes of their own, across 180 degrees east."""
    j, i = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")
    latitude, longitude = 50 + 0.5 * j + 0.1 * i, (179 + 0.5 * i - 0.2 * j + 180) % 360 - 180
    attributes = attributes or {"lat": {"units": "degrees_north"}, "lon": {"units": "degrees_east"}}
    coords = {
        "time": np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(1, "h"),
        "lat": (("y", "x"), latitude, attributes["lat"]),
        "lon": (("y", "x"), longitude, attributes["lon"]),
    }
    field = (("time", "y", "x"), np.arange(72, dtype=np.float32).reshape(3, 4, 6), {"units": "K"})
    xr.Dataset({"v": field}, coords).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    return GriddedOptions.model_validate({"path": str(tmp_path / "a.nc"), "variables": ["v"]}), latitude, longitude


@pytest.mark.parametrize(
    "attributes",
    [
        {"lat": {"units": "degree_N"}, "lon": {"units": "degreesE"}},
        {"lat": {"standard_name": "latitude"}, "lon": {"standard_name": "longitude"}},
        {"lat": {}, "lon": {}},
    ],
)
def test_latitudes_and_longitudes_of_cells_are_kept(tmp_path, attributes):
    source, latitude, longitude = curvilinear(tmp_path, **attributes)
    observed = ingested(tmp_path, source)
    assert {"latitude", "longitude"} <= set(observed.coords)
    np.testing.assert_array_equal(observed.latitude, latitude)
    np.testing.assert_array_equal(observed.longitude, longitude)
    assert observed.longitude.attrs["units"] == "degrees_east"
    assert list(observed.data_vars) == ["frame_present", "v"]


def test_fields_of_coordinates_are_known_by_their_own_attributes(tmp_path):
    source, _, _ = curvilinear(tmp_path, lat={"units": "m"}, lon={"standard_name": "grid_longitude"})
    assert not {"latitude", "longitude"} & set(ingested(tmp_path, source).coords)


def test_they_are_cropped_and_coarsened_with_the_grid(tmp_path):
    source, latitude, longitude = curvilinear(tmp_path)
    cut = source.model_copy(update={"crop": Crop(y=(0, 2), x=(2, 6)), "coarsen": 2})
    observed = ingested(tmp_path, cut)
    assert observed.latitude.values == pytest.approx(latitude[:2, 2:].reshape(2, 2, 2).mean(axis=(0, 2))[None])
    east = longitude % 360
    assert observed.longitude.values % 360 == pytest.approx(east[:2, 2:].reshape(2, 2, 2).mean(axis=(0, 2))[None])


def test_forecasts_and_live_frames_have_them_too(tmp_path):
    observed = ingested(tmp_path, curvilinear(tmp_path)[0])
    grid = store.forecast_grid(observed, ["v"])
    leads = np.array([1, 2]) * np.timedelta64(3600, "s")
    store.create_forecasts(tmp_path / "f.zarr", grid, observed.time.values[:1], leads.astype("m8[ns]"), 1, {})
    store.finish(tmp_path / "f.zarr")
    forecasts = store.open_forecasts(tmp_path / "f.zarr")
    frame = frame_file.encode(parse("2020-01-01T00:00:00Z"), {"v": observed.v.values[0]}, grid)
    for other in (forecasts, frame_file.template_of(frame)):
        xr.testing.assert_equal(other.latitude.drop_vars(["y", "x"]), observed.latitude.drop_vars(["y", "x"]))
        xr.testing.assert_equal(other.longitude.drop_vars(["y", "x"]), observed.longitude.drop_vars(["y", "x"]))


def test_files_whose_cells_lie_elsewhere_are_kept_apart(tmp_path):
    source, _, _ = curvilinear(tmp_path)
    with xr.open_dataset(tmp_path / "a.nc") as file:
        later = file.load().assign_coords(time=file.time + np.timedelta64(3, "h"))
    later["lat"] = later["lat"] + 1
    later.to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    with pytest.raises(InputError, match="keep archives of different grids apart"):
        inspect_source(source.model_copy(update={"path": str(tmp_path)}))


def test_a_model_of_cells_that_lie_elsewhere_is_refused(tmp_path):
    observed = ingested(tmp_path, curvilinear(tmp_path)[0])
    hour, first = np.timedelta64(1, "h"), observed.time.values[0]
    trained = signature_of(observed, ["v"], hour, first)
    assert DataSignature.from_dict(json.loads(json.dumps(trained.as_dict()))) == trained
    turned = observed.assign_coords(longitude=observed.longitude + 360)
    assert compare_signatures(trained, signature_of(turned, ["v"], hour, first)) is None
    north = signature_of(observed.assign_coords(latitude=observed.latitude + 1), ["v"], hour, first)
    assert compare_signatures(trained, north) == "a cell lies at 51 N, 179 E, expected 50 N, 179 E"
    lost = signature_of(observed.drop_vars(["latitude", "longitude"]), ["v"], hour, first)
    assert "of five cells 0 have latitudes and longitudes" in str(compare_signatures(trained, lost))
    assert "located" not in lost.as_dict()
    frame = frame_file.encode(parse("2020-01-01T00:00:00Z"), {"v": observed.v.values[0]}, observed)
    assert json.loads(frame_file.grid_of(frame_file.template_of(frame)))["located"] == [
        list(p) for p in trained.located
    ]


def write_wrf(path, moves: bool = False) -> None:
    """Write a file as WRF does: no axes, latitudes and longitudes for each time, those of its own grid too."""
    times, j, i = np.meshgrid(np.arange(3), np.arange(4), np.arange(6), indexing="ij")
    dims = ("Time", "south_north", "west_east")
    values = {
        "XLAT": (50 + 0.5 * j + 0.1 * i + moves * times, "degree_north"),
        "XLONG": (5 + 0.5 * i, "degree_east"),
        "CLAT": (0.5 * j, "degree_north"),
        "T2": (280.0 + times + j, "K"),
    }
    data = {name: (dims, field.astype(np.float32), {"units": units}) for name, (field, units) in values.items()}
    data["T2"][2]["coordinates"] = "XLONG XLAT XTIME"
    data["XTIME"] = ("Time", [0.0, 60.0, 120.0], {"units": "minutes since 2020-01-01 00:00:00"})
    xr.Dataset(data).to_netcdf(path, engine="h5netcdf")


def test_latitudes_and_longitudes_that_wrf_has_for_each_time(tmp_path):
    write_wrf(tmp_path / "a.nc")
    source = GriddedOptions(path=str(tmp_path / "a.nc"), variables=["T2"])
    observed = ingested(tmp_path, source)
    np.testing.assert_allclose(observed.latitude.values[1], 50.5 + 0.1 * np.arange(6), rtol=1e-6)
    np.testing.assert_allclose(observed.longitude.values[:, 2], 6)
    assert [str(time)[11:13] for time in observed.time.values] == ["00", "01", "02"]
    np.testing.assert_allclose(observed.T2.values[:, 3, 0], [283, 284, 285])
    write_wrf(tmp_path / "a.nc", moves=True)
    with pytest.raises(InputError, match=r"a.nc: 'XLAT' changes with time, expected a grid that stays"):
        inspect_source(source)


def test_a_store_without_units_is_weighted_by_latitude(tmp_path):
    coords = {
        "time": np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(6, "h"),
        "latitude": [60.0, 30.0, 0.0],
        "longitude": [0.0, 30.0, 60.0, 90.0],
    }
    field = (("time", "longitude", "latitude"), np.ones((3, 4, 3), np.float32), {"units": "K"})
    xr.Dataset({"t": field}, coords).to_zarr(tmp_path / "a.zarr", consolidated=False)
    source = GriddedOptions.model_validate({"path": str(tmp_path / "a.zarr"), "variables": ["t"]})
    weights = row_weights(ingested(tmp_path, source))
    cosine = np.cos(np.deg2rad([60, 30, 0]))
    np.testing.assert_allclose(weights, cosine / cosine.mean())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lat": ("lat", ["a", "b", "c"])}, "a.nc: coordinate lat is of type"),
        (
            {"crs": ((), 0, {"grid_mapping_name": "flat"})},
            "a.nc: grid mapping crs: Unsupported grid mapping name",
        ),
    ],
)
def test_coordinates_that_say_nothing_are_named(tmp_path, change, message):
    coords = {"time": np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(1, "h"), "lon": [1.0, 2.0]}
    field = (("time", "lat", "lon"), np.ones((3, 3, 2), np.float32), {"units": "K", "grid_mapping": "crs"})
    xr.Dataset({"v": field}, {**coords, "lat": [3.0, 2.0, 1.0], **change}).to_netcdf(
        tmp_path / "a.nc", engine="h5netcdf"
    )
    with pytest.raises(InputError, match=message):
        inspect_source(GriddedOptions.model_validate({"path": str(tmp_path / "a.nc"), "variables": ["v"]}))


def test_complex_numbers_are_refused(tmp_path):
    coords = {"time": np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(1, "h")}
    field = (("time", "lat", "lon"), np.ones((3, 3, 2), np.complex64), {"units": "K"})
    xr.Dataset({"v": field}, {**coords, "lat": [3.0, 2.0, 1.0], "lon": [1.0, 2.0]}).to_zarr(
        tmp_path / "a.zarr", consolidated=False
    )
    with pytest.raises(InputError, match="'v' is of type complex64, expected numbers"):
        inspect_source(GriddedOptions.model_validate({"path": str(tmp_path / "a.zarr"), "variables": ["v"]}))
