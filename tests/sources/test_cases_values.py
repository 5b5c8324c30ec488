"""Values that are none become missing, limits of packed data are unpacked."""

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import Crop, IngestOptions
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
