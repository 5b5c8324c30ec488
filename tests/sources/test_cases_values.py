"""Values that are none become missing, limits of packed data are unpacked."""

import h5py
import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from fieldcast.pipeline.config.sources import Crop, GriddedOptions, IngestOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source, open_source
from fieldcast.pipeline.sources.missing import limits_of
from tests.sources.test_cases_times import ingested, options


def test_limits_of_packed_data_are_unpacked():
    grid = open_source(options("netcdf/slp.nc", "slp")).grid()
    assert (grid.slp.attrs["valid_min"], grid.slp.attrs["valid_max"]) == (80_000, 120_000)


@pytest.mark.parametrize("limit", [np.nan, np.inf])
def test_a_limit_that_is_no_number_is_no_limit(limit):
    assert limits_of({"valid_min": np.float32(1), "valid_max": np.float32(limit)}, {}) == (1, None)


def test_values_inside_unpacked_limits_stay(tmp_path):
    observed = ingested(tmp_path, options("netcdf/slp.nc", "slp"))
    assert np.isfinite(observed.slp).all()
    assert 80_000 <= observed.slp.min() <= observed.slp.max() <= 120_000


@pytest.mark.parametrize(("case", "refused"), [("validrange", 17), ("defaultfill", 16), ("inf", 1)])
def test_values_that_are_none_are_missing(tmp_path, case, refused):
    observed = ingested(tmp_path, options(f"netcdf/{case}.nc"))
    assert int(np.isnan(observed.v).sum()) == int(observed.v_refused.sum()) == refused
    assert np.nanmax(np.abs(observed.v)) < 1000
    assert not np.isinf(observed.v).any()


def packed_in(path, **attributes: object):
    """Write a field, packed, with these attributes."""
    coords = {"time": np.datetime64("2020-01-01", "ns") + np.arange(2) * np.timedelta64(1, "h")}
    coords |= {"y": ("y", [1.0, 2.0], {"units": "km"}), "x": ("x", [1.0, 2.0, 3.0], {"units": "km"})}
    field = ("time", "y", "x"), np.arange(12, dtype=np.int16).reshape(2, 2, 3), {"units": "K"}
    xr.Dataset({"v": field}, coords).to_netcdf(path, engine="h5netcdf")
    with h5py.File(path, "a") as file:
        file["v"].attrs.update(attributes)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scale_factor": 0.0}, "'v' has scale_factor 0.0, expected a finite number"),
        ({"scale_factor": np.inf}, "'v' has scale_factor inf"),
        ({"add_offset": np.nan}, "'v' has add_offset nan"),
        ({"scale_factor": "a"}, "'v' has scale_factor a"),
        ({"valid_min": np.int16(9), "valid_max": np.int16(1)}, "'v' has valid_min 9 above valid_max 1"),
        ({"units": " "}, "'v' has no attribute 'units'"),
    ],
)
def test_packing_and_limits_that_make_no_numbers_are_refused(tmp_path, attributes, message):
    packed_in(tmp_path / "a.nc", **attributes)
    with pytest.raises(InputError, match=message):
        inspect_source(GriddedOptions(path=str(tmp_path / "a.nc"), variables=["v"]))


@pytest.mark.parametrize(("units", "stored"), [("seconds", "seconds"), (np.bytes_(b"\xff"), "\ufffd")])
def test_units_of_time_and_odd_bytes_come_into_the_store_as_they_are(tmp_path, units, stored):
    packed_in(tmp_path / "a.nc", units=units)
    observed = ingested(tmp_path, GriddedOptions(path=str(tmp_path / "a.nc"), variables=["v"]))
    assert (observed.v.attrs["units"], observed.v.dtype) == (stored, np.float32)


def test_names_that_stores_use_are_refused():
    for name in ("x", "frame_present", "v_refused"):
        with pytest.raises(ValidationError, match="which is another thing in a store: rename it in the files"):
            GriddedOptions(path="a.nc", variables=[name])


@pytest.mark.parametrize("share", [0.02, 0.6, 0.95])
def test_a_cut_classic_file_is_called_so(tmp_path, share):
    packed_in(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as file:
        content = bytes(file.load().to_netcdf(None, format="NETCDF3_CLASSIC", engine="scipy"))
    (tmp_path / "a.nc").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"a.nc: truncated or broken file .classic NetCDF.: replace the file"):
        inspect_source(GriddedOptions(path=str(tmp_path / "a.nc"), variables=["v"]))


def test_gaps_are_not_refused_values(tmp_path):
    values = np.arange(6 * 3 * 4, dtype=np.float64).reshape(6, 3, 4)
    values[1, 0, :2] = -999  # the file's fill: a gap
    values[1, 1, 0] = np.nan  # a gap
    values[2, 0, :3] = [np.inf, -np.inf, 1e30]
    values[2, 1, 0] = 3.5e38  # beyond float32
    values[5, 2, 1] = -0.5  # below valid_min
    coords = {
        "time": np.datetime64("2020-01-01", "ns") + np.arange(6) * np.timedelta64(1, "h"),
        "lat": ("lat", [3.0, 2.0, 1.0], {"units": "degrees_north"}),
        "lon": ("lon", [1.0, 2.0, 3.0, 4.0], {"units": "degrees_east"}),
    }
    field = xr.DataArray(values, coords, ("time", "lat", "lon"), attrs={"units": "mm", "valid_min": 0.0})
    whole = field.copy(data=np.arange(6 * 3 * 4, dtype=np.float64).reshape(6, 3, 4))
    path = tmp_path / "a.nc"
    xr.Dataset({"v": field, "whole": whole}).to_netcdf(path, engine="h5netcdf", encoding={"v": {"_FillValue": -999.0}})
    source = options("netcdf/inf.nc", "v", "whole").model_copy(update={"path": str(path)})
    observed = ingested(tmp_path, source, IngestOptions(shard_frames=4))
    np.testing.assert_array_equal(observed.v_refused.values, [0, 0, 4, 0, 0, 1])
    assert int(np.isnan(observed.v).sum()) == 8
    assert "whole_refused" not in observed
    cut = source.model_copy(update={"crop": Crop(y=(1, 3), x=(0, 4))})
    assert ingested(tmp_path / "cut", cut).v_refused.sum() == 2


def test_axes_in_metres_have_one_spacing():
    assert inspect_source(options("netcdf/meters.nc")).spacing == (2000, 2000)


@pytest.mark.parametrize("scale", [2.0, -2.0])
def test_one_limit_under_a_negative_scale(tmp_path, scale):
    coords = {
        "time": np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(1, "h"),
        "lat": ("lat", [2.0, 1.0], {"units": "degrees_north"}),
        "lon": ("lon", [1.0, 2.0], {"units": "degrees_east"}),
    }
    packed = np.arange(12, dtype=np.int16).reshape(3, 2, 2)
    attributes = {"units": "K", "scale_factor": scale, "add_offset": 100.0, "valid_max": np.int16(9)}
    xr.Dataset({"v": (("time", "lat", "lon"), packed, attributes)}, coords).to_netcdf(
        tmp_path / "a.nc", engine="h5netcdf"
    )
    source = options("netcdf/inf.nc").model_copy(update={"path": str(tmp_path / "a.nc")})
    expected = np.where(packed <= 9, packed * scale + 100, np.nan)
    np.testing.assert_array_equal(ingested(tmp_path, source).v.values, expected)
