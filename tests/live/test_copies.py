"""Copies are read back by other libraries: GDAL (rasterio) and plain HDF5 (h5netcdf)."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr

from fieldcast.pipeline.config import StormCell, Verify
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.schema import check_forecasts, field_names, lead_minutes
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive import exports
from fieldcast.pipeline.live.archive.exports import check_kinds, remove_copies, write_copies
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger
from fieldcast.pipeline.live.archive.publish import path_of
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.outcomes import Result
from fieldcast.pipeline.sources.template import grid_template
from tests.live.contexts import START, live_context, minutes

STAMP = "20201031T060000Z"
INIT_TIMES = np.array(["2020-10-31T06:00"], "datetime64[ns]")
LEAD_TIMES = np.array([30, 60, 120], "timedelta64[m]").astype("timedelta64[ns]")
HEIGHT, WIDTH = 5, 7
RAIN = {"units": "mm h-1", "standard_name": "rainfall_rate", "long_name": "Rain rate", "valid_min": 0.0}
EUROPE = pyproj.CRS.from_epsg(3035)  # ETRS89 / LAEA Europe, in metres
WGS84 = pyproj.CRS.from_epsg(4326)


def geographic(name: str, units: str) -> dict[str, str]:
    return {"standard_name": name, "units": units}


def projected(axis: str, units: str) -> dict[str, str]:
    return {"standard_name": f"projection_{axis}_coordinate", "units": units}


Y_DEGREES = np.arange(HEIGHT) * 0.5 + 50.25
X_DEGREES = np.arange(WIDTH) * 0.25 + 9.125
Y_KM = np.arange(HEIGHT) * 2.0 + 3000
X_KM = np.arange(WIDTH) * 2.0 + 4300


def make(folder: Path, y: xr.Variable, x: xr.Variable, crs: pyproj.CRS | None, names: tuple[str, ...]) -> xr.Dataset:
    """Return a forecast as the archive holds it, with a missing cell in each field."""
    grid = grid_template(y, x, dict.fromkeys(names, RAIN), {"title": "Test"}, crs)
    path = folder / "forecast.zarr"
    store.create_forecasts(
        path, grid, INIT_TIMES, LEAD_TIMES, 1, {"model": "convlstm", "degraded": False, "inputs": ["a", "b"]}
    )
    random = np.random.default_rng(0)
    shape = (1, LEAD_TIMES.size, y.size, x.size)
    fields = {name: random.gamma(1.0, 2.0, shape).astype(np.float32) for name in names}
    for field in fields.values():
        field[..., 0, 2] = np.nan
    dims = ("init_time", "lead_time", "y", "x")
    store.write_block(path, 0, xr.Dataset({name: (dims, field) for name, field in fields.items()}))
    store.finish(path)
    return store.open_forecasts(path)


@pytest.fixture
def degrees(tmp_path: Path) -> xr.Dataset:
    y = xr.Variable("y", Y_DEGREES[::-1], geographic("latitude", "degrees_north"))  # north first, as GRIB has it
    x = xr.Variable("x", X_DEGREES, geographic("longitude", "degrees_east"))
    return make(tmp_path, y, x, WGS84, ("rain_rate",))


@pytest.fixture
def kilometres(tmp_path: Path) -> xr.Dataset:
    y, x = xr.Variable("y", Y_KM, projected("y", "km")), xr.Variable("x", X_KM, projected("x", "km"))
    return make(tmp_path, y, x, EUROPE, ("rain_rate", "snow_rate"))


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_netcdf_is_the_forecast_again(kilometres: xr.Dataset, tmp_path: Path) -> None:
    before = kilometres.copy(deep=True)
    (path,) = write_copies(kilometres, tmp_path / "copies", STAMP, ["netcdf"])
    assert path == tmp_path / "copies" / f"{STAMP}.nc"
    xr.testing.assert_identical(kilometres, before)
    with xr.open_dataset(path, engine="h5netcdf", decode_timedelta=True, decode_coords="all") as back:
        check_forecasts(back)
        assert field_names(back) == ["rain_rate", "snow_rate"]
        for name in ("rain_rate", "snow_rate", "init_time", "lead_time", "valid_time"):
            np.testing.assert_array_equal(back[name], kilometres[name])
        np.testing.assert_array_equal(back.x, 1000 * X_KM)  # EPSG:3035 is in metres
        assert pyproj.CRS.from_cf(back.spatial_ref.attrs) == EUROPE
        assert back.attrs["model"] == "convlstm"
        assert back.attrs["degraded"] == "false"
        assert back.attrs["inputs"] == '["a", "b"]'


def test_netcdf_is_cf_for_readers_that_know_no_xarray(kilometres: xr.Dataset, tmp_path: Path) -> None:
    (path,) = write_copies(kilometres, tmp_path, STAMP, ["netcdf"])
    with h5netcdf.File(path) as file:
        assert file.attrs["Conventions"] == "CF-1.11"
        rain, period = file["rain_rate"], file["lead_time"]
        assert rain.dimensions == ("init_time", "lead_time", "y", "x")
        assert rain.dtype == np.float32
        assert rain.compression == "gzip"
        assert rain.attrs["valid_min"].dtype == np.float32
        assert {name: rain.attrs[name] for name in ("units", "standard_name", "grid_mapping", "coordinates")} == {
            "units": "mm h-1",
            "standard_name": "rainfall_rate",
            "grid_mapping": "spatial_ref",
            "coordinates": "valid_time",
        }
        assert np.isnan(rain.attrs["_FillValue"])
        assert dict(period.attrs) == {"standard_name": "forecast_period", "units": "minutes"}
        assert period[:].tolist() == [30, 60, 120]
        assert file["init_time"].attrs["standard_name"] == "forecast_reference_time"
        assert file["init_time"].attrs["units"] == "seconds since 1970-01-01"
        assert file["valid_time"].attrs["standard_name"] == "time"
        assert {name: file["x"].attrs[name] for name in ("units", "axis", "standard_name")} == {
            "units": "m",
            "axis": "X",
            "standard_name": "projection_x_coordinate",
        }
        assert "_FillValue" not in file["x"].attrs
        assert file["spatial_ref"].attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"


@pytest.mark.parametrize("grid", ["degrees", "kilometres"])
def test_gdal_sees_one_place_in_both_copies(grid: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    forecast: xr.Dataset = request.getfixturevalue(grid)
    netcdf, images = write_copies(forecast, tmp_path / "copies", STAMP, ["netcdf", "geotiff"])
    with (
        rasterio.open(f"netcdf:{netcdf}:rain_rate") as one,
        rasterio.open(images / "rain_rate_060min.tif") as other,
    ):
        assert one.crs == other.crs
        assert one.transform.almost_equals(other.transform)
        np.testing.assert_array_equal(one.read(2), other.read(1))


def test_geotiff_in_degrees_puts_a_cell_where_it_belongs(degrees: xr.Dataset, tmp_path: Path) -> None:
    (folder,) = write_copies(degrees, tmp_path / "copies", STAMP, ["geotiff"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "rain_rate_030min.tif",
        "rain_rate_060min.tif",
        "rain_rate_120min.tif",
    ]
    with rasterio.open(folder / "rain_rate_060min.tif") as image:
        assert image.crs.to_epsg() == 4326
        assert image.count == 1
        assert image.dtypes == ("float32",)
        assert tuple(image.bounds) == (9.0, 50.0, 10.75, 52.5)
        field = degrees.rain_rate.isel(init_time=0, lead_time=1)
        np.testing.assert_array_equal(image.read(1), field)  # north up already
        ((value,),) = image.sample([(9.7, 51.6)])
        assert value == field.sel(y=51.6, x=9.7, method="nearest")
        tags = image.tags()
        assert tags["units"] == "mm h-1"
        assert tags["init_time"] == "2020-10-31T06:00:00Z"
        assert tags["valid_time"] == "2020-10-31T07:00:00Z"
        assert tags["lead_minutes"] == "60"
        assert tags["model"] == "convlstm"


def test_geotiff_of_a_projected_grid_is_in_metres_and_north_up(kilometres: xr.Dataset, tmp_path: Path) -> None:
    (folder,) = write_copies(kilometres, tmp_path / "copies", STAMP, ["geotiff"])
    assert len(list(folder.iterdir())) == 2 * LEAD_TIMES.size
    longitude, latitude = pyproj.Transformer.from_crs(EUROPE, WGS84, always_xy=True).transform(4_306_300, 3_002_400)
    with rasterio.open(folder / "snow_rate_120min.tif") as image:
        assert image.crs.to_epsg() == 3035
        assert tuple(image.bounds) == (4_299_000, 2_999_000, 4_313_000, 3_009_000)
        field = kilometres.snow_rate.isel(init_time=0, lead_time=2)
        np.testing.assert_array_equal(image.read(1), field[::-1])  # the store has south first
        point = pyproj.Transformer.from_crs(WGS84, image.crs, always_xy=True).transform(longitude, latitude)
        ((value,),) = image.sample([point])
        assert value == field.sel(y=3002, x=4306)


def test_missing_cells_are_nodata(kilometres: xr.Dataset, tmp_path: Path) -> None:
    (folder,) = write_copies(kilometres, tmp_path / "copies", STAMP, ["geotiff"])
    with rasterio.open(folder / "rain_rate_030min.tif") as image:
        assert np.isnan(image.nodata)
        masked = image.read(1, masked=True)
        assert np.argwhere(masked.mask).tolist() == [[HEIGHT - 1, 2]]


def test_a_grid_without_crs_keeps_its_own_units(tmp_path: Path) -> None:
    y, x = xr.Variable("y", Y_KM, projected("y", "km")), xr.Variable("x", X_KM, projected("x", "km"))
    forecast = make(tmp_path, y, x, None, ("rain_rate",))
    netcdf, folder = write_copies(forecast, tmp_path / "copies", STAMP, ["netcdf", "geotiff"])
    with rasterio.open(folder / "rain_rate_030min.tif") as image:
        assert image.crs is None
        assert tuple(image.bounds) == (4299, 2999, 4313, 3009)
    with h5netcdf.File(netcdf) as file:
        assert "spatial_ref" not in file.variables
        assert file["x"].attrs["units"] == "km"


def grid_with(y: np.ndarray, attrs: dict[str, Any]) -> tuple[xr.Variable, xr.Variable]:
    return xr.Variable("y", y, attrs), xr.Variable("x", X_KM, projected("x", "km"))


@pytest.mark.parametrize(
    ("y", "attrs", "message"),
    [
        (
            np.arange(HEIGHT) ** 2.0,
            projected("y", "km"),
            "y of the grid is not evenly spaced over at least 2 cells: use 'netcdf'",
        ),
        (Y_KM[:1], projected("y", "km"), "y of the grid is not evenly spaced over at least 2 cells"),
        (Y_KM, {"units": "1"}, "y of the grid has units '1', while its CRS is in metre"),
    ],
)
def test_grids_that_no_geotiff_can_hold(y: np.ndarray, attrs: dict[str, Any], message: str, tmp_path: Path) -> None:
    forecast = make(tmp_path, *grid_with(y, attrs), EUROPE, ("rain_rate",))
    with pytest.raises(InputError, match=message):
        write_copies(forecast, tmp_path / "copies", STAMP, ["geotiff"])
    assert not list((tmp_path / "copies").iterdir())
    assert write_copies(forecast, tmp_path / "copies", STAMP, ["netcdf"])[0].exists()


def test_a_crs_that_no_geotiff_can_hold(tmp_path: Path) -> None:
    rotated = pyproj.CRS("+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18")
    y, x = (xr.Variable(axis, np.arange(5) * 0.1, {"units": "degrees"}) for axis in ("y", "x"))
    forecast = make(tmp_path, y, x, rotated, ("rain_rate",))
    with pytest.raises(InputError, match=r"no GeoTIFF can hold the CRS of the grid \(.*\): use 'netcdf'"):
        write_copies(forecast, tmp_path / "copies", STAMP, ["geotiff"])
    assert not list((tmp_path / "copies").iterdir())
    write_copies(forecast, tmp_path / "copies", STAMP, ["netcdf"])


def test_coordinates_rounded_to_float32_are_even(tmp_path: Path) -> None:
    y = np.linspace(50, 52, 201).astype(np.float32).astype(float)
    x = np.linspace(5, 8, 301).astype(np.float32).astype(float)
    axes = (
        xr.Variable("y", y, geographic("latitude", "degrees_north")),
        xr.Variable("x", x, geographic("longitude", "degrees_east")),
    )
    (folder,) = write_copies(make(tmp_path, *axes, WGS84, ("rain_rate",)), tmp_path / "copies", STAMP, ["geotiff"])
    with rasterio.open(folder / "rain_rate_030min.tif") as image:
        np.testing.assert_allclose(image.bounds, (4.995, 49.995, 8.005, 52.005), atol=1e-5)


def test_written_twice_gives_the_same_bytes_and_nothing_else(kilometres: xr.Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    write_copies(kilometres, folder, STAMP, ["netcdf", "geotiff"])
    first = files_below(folder)
    assert len(first) == 1 + 2 * LEAD_TIMES.size
    time.sleep(1.1)  # a time in a file would be in seconds
    write_copies(kilometres, folder, STAMP, ["netcdf", "geotiff"])
    assert files_below(folder) == first


def test_a_copy_is_replaced_whole(kilometres: xr.Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    (folder / STAMP).mkdir(parents=True)
    (folder / STAMP / "rain_rate_999min.tif").write_text("of another horizon")
    (folder / f".{STAMP}.partial").mkdir()  # left by a writer that was killed
    (folder / f"{STAMP}.nc").write_text("old")
    write_copies(kilometres, folder, STAMP, ["netcdf", "geotiff"])
    assert not (folder / STAMP / "rain_rate_999min.tif").exists()
    assert sorted(path.name for path in folder.iterdir()) == [STAMP, f"{STAMP}.nc"]


def test_removed_copies_leave_the_others(kilometres: xr.Dataset, tmp_path: Path) -> None:
    folder, other = tmp_path / "copies", "20201031T070000Z"
    for stamp in (STAMP, other):
        write_copies(kilometres, folder, stamp, ["netcdf", "geotiff"])
    (folder / f".{STAMP}.nc.partial").write_text("half")
    (folder / f".{STAMP}.partial").mkdir()
    remove_copies(folder, STAMP)
    assert sorted(path.name for path in folder.iterdir()) == [other, f"{other}.nc"]
    remove_copies(folder, STAMP)
    remove_copies(tmp_path / "nowhere", STAMP)


def test_a_full_disk_leaves_the_old_copy(
    kilometres: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copies"
    write_copies(kilometres, folder, STAMP, ["netcdf", "geotiff"])
    before = files_below(folder)

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        for kind in ("netcdf", "geotiff"):
            with pytest.raises(OSError, match="No space left"):
                write_copies(kilometres + 1, folder, STAMP, [kind])
    assert {name: content for name, content in files_below(folder).items() if not name.startswith(".")} == before


def test_several_init_times_are_refused(kilometres: xr.Dataset, tmp_path: Path) -> None:
    two = xr.concat([kilometres, kilometres], "init_time", data_vars="all", coords="minimal", compat="override")
    with pytest.raises(ValueError, match="forecast has 2 init times, expected 1"):
        write_copies(two, tmp_path, STAMP, ["netcdf"])


def test_geotiff_without_rioxarray_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    check_kinds(["netcdf", "geotiff"], Verify())
    monkeypatch.setitem(sys.modules, "rioxarray", None)
    check_kinds(["netcdf"], Verify())
    with pytest.raises(InputError, match=r"rioxarray is not installed: pip install 'fieldcast\[geo\]'"):
        check_kinds(["netcdf", "geotiff"], Verify())


def test_storm_cells_are_a_copy_too(kilometres: xr.Dataset, tmp_path: Path) -> None:
    kilometres["rain_rate"] = 0.0 * kilometres["rain_rate"].load()
    kilometres["rain_rate"][0, 1:, 4:9, 5:11] = 12.0
    verify = Verify(storm_cells={"rain_rate": StormCell(at_least=5, area_km2=4)})
    (path,) = write_copies(kilometres, tmp_path, STAMP, ["geojson"], verify=verify)
    assert path == tmp_path / f"{STAMP}.geojson"
    features = json.loads(path.read_text())["features"]
    assert [feature["properties"]["lead_minutes"] for feature in features] == lead_minutes(kilometres)[1:]
    assert {feature["properties"]["id"] for feature in features} == {1}
    assert exports.has_copy(tmp_path, STAMP, "geojson")
    remove_copies(tmp_path, STAMP)
    assert not list(tmp_path.glob("*.geojson"))


def test_storm_cells_without_a_rule_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"verify\.storm_cells does not say what a storm cell is"):
        check_kinds(["geojson"], Verify())
    with pytest.raises(InputError, match=r"verify\.storm_cells does not say what a storm cell is"):
        live_context(tmp_path, changes={"copies": ["geojson"]})


def copies_of(context: LiveContext) -> dict[str, int]:
    """Return when each copy was written."""
    folder = context.folder / "copies"
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def copy_events(context: LiveContext) -> list[str]:
    with Ledger(context.folder / LEDGER, read_only=True) as ledger:
        return [event["event"] for event in ledger.events() if event["event"].startswith("cop")]


def test_every_forecast_of_a_catch_up_gets_its_copies_and_none_is_rewritten(tmp_path: Path) -> None:
    context = live_context(tmp_path, changes={"copies": ["netcdf", "geotiff"]})
    cycle.run(context)
    context.clock.sleep(900)
    assert len(cycle.run(context)) == 3
    folder = context.folder / "copies"
    stamps = [f"20240601T06{minute:02d}00Z" for minute in (0, 5, 10, 15)]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*stamps, *(f"{stamp}.nc" for stamp in stamps)])
    assert {len(list((folder / stamp).iterdir())) for stamp in stamps} == {4}  # lead times
    before = copies_of(context)
    assert len(before) == 4 + 16
    context.clock.sleep(60)
    assert cycle.run(context) == []
    assert copies_of(context) == before
    (folder / f"{stamps[1]}.nc").unlink()
    cycle.run(context)
    assert copies_of(context).keys() == before.keys()
    assert {name: copies_of(context)[name] == before[name] for name in before} == {
        name: name != f"{stamps[1]}.nc" for name in before
    }


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("of a library")], ids=str)
def test_a_copy_that_fails_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: object) -> None:
        raise error

    context = live_context(tmp_path, changes={"copies": ["netcdf", "geotiff"]})
    with monkeypatch.context() as patch:
        patch.setattr(exports, "replace_durable", full)
        assert [one.result for one in cycle.run(context)] == [Result.DONE]
        context.clock.sleep(300)
        assert [one.result for one in cycle.run(context)] == [Result.DONE]
    assert copy_events(context) == ["copy_failed"]
    assert len(copies_of(context)) == 8  # of the other kind
    cycle.run(context)
    assert len(copies_of(context)) == 10
    assert copy_events(context) == ["copy_failed", "copies_complete"]


def flip_a_chunk(forecast: Path, _other: Path) -> None:
    newest = next(path for path in (forecast / "rain_rate" / "c").rglob("*") if path.is_file())
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")


def take_another(forecast: Path, other: Path) -> None:
    shutil.rmtree(forecast)
    shutil.copytree(other, forecast)  # whole, by its own manifest


@pytest.mark.parametrize("damage", [flip_a_chunk, take_another])
def test_a_damaged_forecast_has_no_copy_and_costs_no_other_one(tmp_path: Path, damage: Any) -> None:
    context = live_context(tmp_path)
    cycle.run(context)
    context.clock.sleep(300)
    cycle.run(context)
    damage(path_of(context.folder, START + minutes(5)), path_of(context.folder, START))
    cycle.run(live_context(tmp_path, context.clock.now(), {"copies": ["netcdf"]}))
    assert list(copies_of(context)) == ["20240601T060000Z.nc"]
    assert copy_events(context) == ["copy_failed"]
