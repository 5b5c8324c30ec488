import hashlib
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source, open_source
from tests.sources import archives

HOURS = pd.date_range("2019-03-01", periods=4, freq="h")


def options(path: object, *variables: str, **more: object) -> GriddedOptions:
    return GriddedOptions.model_validate({"path": str(path), "variables": list(variables or ["t2m"]), **more})


def values(source: GriddedOptions, name: str = "t2m") -> np.ndarray:
    parts = open_source(source).segments()
    read = [part.read(np.arange(part.times.size), slice(None), slice(None))[name].values for part in parts]
    return np.concatenate(read)


@pytest.fixture
def weather() -> xr.Dataset:
    return archives.weather(HOURS)


def test_netcdf_keeps_values_units_and_coordinates(tmp_path, weather):
    source = options(archives.write_weather(tmp_path / "a.nc", weather), "t2m", "wind")
    np.testing.assert_array_equal(values(source), weather.t2m.values)
    grid = open_source(source).grid()
    assert list(grid.data_vars) == ["t2m", "wind"]
    assert grid.t2m.attrs == {"units": "K"}
    assert grid.y.attrs == {"standard_name": "latitude", "units": "degrees_north"}
    np.testing.assert_array_equal(grid.x, weather.lon.values)
    assert grid.attrs == {"title": "Weather"}  # no history: it holds the clock


def test_zarr_folder_and_netcdf_give_the_same(tmp_path, weather):
    weather.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    np.testing.assert_array_equal(values(options(tmp_path / "a.zarr")), weather.t2m.values)
    (tmp_path / "a.zarr").rename(tmp_path / "b")
    np.testing.assert_array_equal(values(options(tmp_path / "b")), weather.t2m.values)


def test_some_frames_and_cells(tmp_path, weather):
    part = open_source(options(archives.write_weather(tmp_path / "a.nc", weather))).segments()[0]
    read = part.read(np.array([0, 3]), slice(1, 2), slice(2, 4))["t2m"].values
    np.testing.assert_array_equal(read, [[[12, 13]], [[312, 313]]])


def test_a_file_a_frame_with_a_single_time(tmp_path, weather):
    for hour in range(4):
        archives.write_weather(tmp_path / f"{hour}.nc", weather.isel(time=hour))
    assert inspect_source(options(tmp_path)).time_axis.present.sum() == 4
    np.testing.assert_array_equal(values(options(tmp_path / "*.nc")), weather.t2m.values)


def test_transposed_fields_and_levels_of_length_one(tmp_path, weather):
    turned = weather.expand_dims(level=[2.0]).transpose("lon", "level", "time", "lat")
    np.testing.assert_array_equal(
        values(options(archives.write_weather(tmp_path / "a.nc", turned))), weather.t2m.values
    )


def test_any_cf_time_unit(tmp_path, weather):
    weather["time"].encoding = {"units": "days since 1900-01-01 12:00", "dtype": "float64"}
    summary = inspect_source(options(archives.write_weather(tmp_path / "a.nc", weather)))
    assert (summary.time_axis.times[0], summary.step) == (np.datetime64("2019-03-01"), np.timedelta64(1, "h"))


def test_grid_mapping_becomes_spatial_ref(tmp_path, weather):
    mapping = {"grid_mapping_name": "latitude_longitude", "semi_major_axis": 6371229.0, "inverse_flattening": 0.0}
    weather["crs"] = ((), 0, mapping)
    weather["t2m"].attrs["grid_mapping"] = "crs"
    grid = open_source(options(archives.write_weather(tmp_path / "a.nc", weather))).grid()
    assert grid.t2m.attrs["grid_mapping"] == "spatial_ref"
    assert "crs_wkt" in grid.spatial_ref.attrs


def error_of(source: GriddedOptions) -> str:
    with pytest.raises(InputError) as caught:
        inspect_source(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_variable_names_those_found(tmp_path, weather):
    path = archives.write_weather(tmp_path / "a.nc", weather)
    assert error_of(options(path, "rain")) == f"{path}: no variable 'rain', found t2m, wind: correct source.variables"


def test_truncated_netcdf_is_named(tmp_path, weather):
    path = archives.write_weather(tmp_path / "a.nc", weather)
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path}: truncated file" in error_of(options(path))


def test_a_wrong_kind_of_file_is_named(tmp_path):
    for name, kind in (("a.nc", "NetCDF"), ("a.grib", "GRIB")):
        (tmp_path / name).write_text("<html>")
        assert f"{tmp_path / name}: no {kind} file" in error_of(options(tmp_path / name))
    (tmp_path / "a.txt").write_text("x")
    assert "ending '.txt' is unknown" in error_of(options(tmp_path / "a.txt"))


def test_truncated_grib_is_named(tmp_path):
    (tmp_path / "a.grib").write_bytes(b"GRIB" + bytes(100))
    assert "a.grib: truncated file, its last GRIB message has no end" in error_of(options(tmp_path / "a.grib"))


def test_mixed_units_and_grids_are_refused(tmp_path, weather):
    archives.write_weather(tmp_path / "a.nc", weather)
    later = HOURS + pd.Timedelta(hours=4)
    archives.write_weather(tmp_path / "b.nc", archives.weather(later, units="W m-2"))
    assert "b.nc: 't2m' has units 'W m-2', expected 'K'" in error_of(options(tmp_path))
    archives.write_weather(tmp_path / "b.nc", archives.weather(later, width=7))
    assert "b.nc: the grid is 3 x 7 cells" in error_of(options(tmp_path))


def test_missing_units_time_and_extra_levels_are_refused(tmp_path, weather):
    bare = weather.copy()
    bare["t2m"].attrs = {}
    assert "'t2m' has no attribute 'units'" in error_of(options(archives.write_weather(tmp_path / "a.nc", bare)))
    timeless = weather.isel(time=0, drop=True)
    assert "'t2m' has no CF time" in error_of(options(archives.write_weather(tmp_path / "b.nc", timeless)))
    levels = xr.concat([weather, weather], dim=pd.Index([0, 1], name="level"))
    assert "'level': 2" in error_of(options(archives.write_weather(tmp_path / "c.nc", levels)))
    odd = weather.rename(lat="north").drop_vars("north")
    assert "none is the y axis" in error_of(options(archives.write_weather(tmp_path / "d.nc", odd)))


def test_a_variable_that_does_not_change_with_time_is_named(tmp_path, weather):
    path = archives.write_weather(tmp_path / "a.nc", weather.assign(height=weather.t2m[0].drop_vars("time")))
    with pytest.raises(InputError, match="'height' does not change with time"):
        inspect_source(options(path, "t2m", "height"))


def test_crop_outside_the_grid(tmp_path, weather):
    source = options(archives.write_weather(tmp_path / "a.nc", weather), crop={"y": [0, 3], "x": [2, 9]})
    assert "source.crop.x is [2, 9], but the grid of the source (gridded) has 5 cells along x" in error_of(source)


def test_checksum_of_many_files_is_refused(tmp_path, weather):
    archives.write_weather(tmp_path / "a.nc", weather)
    assert "source.sha256 is for one file" in error_of(options(tmp_path, sha256="0" * 64))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path, weather):
    """A file behind HTTP on this machine: its URL and its SHA-256."""
    folder = tmp_path / "served"
    folder.mkdir()
    data = archives.write_weather(folder / "a.nc", weather).read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/a.nc", hashlib.sha256(data).hexdigest(), folder
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_once(tmp_path, weather, served):
    url, checksum, folder = served
    source = options(url, sha256=checksum, download_folder=tmp_path / "kept")
    np.testing.assert_array_equal(values(source), weather.t2m.values)
    (folder / "a.nc").unlink()
    np.testing.assert_array_equal(values(source), weather.t2m.values)
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".nc"]


def test_a_wrong_checksum_and_a_missing_page(tmp_path, served):
    url, checksum, _ = served
    message = error_of(options(url, sha256="0" * 64, download_folder=tmp_path / "kept"))
    assert f"{url}: sha256 is {checksum}, expected {'0' * 64}" in message
    message = error_of(options(url.replace("a.nc", "b.nc"), download_folder=tmp_path / "kept"))
    assert "b.nc: download failed: HTTP Error 404" in message


def test_grib_leaves_the_interpreters_sqlite_in_place():
    code = "import fieldcast.pipeline.sources, cfgrib, sqlite3; print(sqlite3.sqlite_version_info >= (3, 31))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"  # eccodes brings 3.26, too old for MLflow
