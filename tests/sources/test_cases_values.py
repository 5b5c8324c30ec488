"""Values that are none become missing, limits of packed data are unpacked."""

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.sources import inspect_source, open_source
from tests.sources.test_cases_times import ingested, options


def test_limits_of_packed_data_are_unpacked():
    grid = open_source(options("netcdf/slp.nc", "slp")).grid()
    assert (grid.slp.attrs["valid_min"], grid.slp.attrs["valid_max"]) == (80_000, 120_000)


def test_values_inside_unpacked_limits_stay(tmp_path):
    observed = ingested(tmp_path, options("netcdf/slp.nc", "slp"))
    assert np.isfinite(observed.slp).all()
    assert 80_000 <= observed.slp.min() <= observed.slp.max() <= 120_000


@pytest.mark.parametrize("case", ["validrange", "defaultfill", "inf"])
def test_values_that_are_none_are_missing(tmp_path, case):
    observed = ingested(tmp_path, options(f"netcdf/{case}.nc"))
    assert np.isnan(observed.v).any()
    assert np.nanmax(np.abs(observed.v)) < 1000
    assert not np.isinf(observed.v).any()


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
