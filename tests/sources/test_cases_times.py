"""Fields belong to their valid time, accumulations to their period: files of forecasts, one field a file, members."""

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions, IngestOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.ingest import ingest
from fieldcast.pipeline.sources import inspect_source, open_source
from fieldcast.pipeline.sources.calendars import dates_of
from tests.cases import case_file

SMALL = IngestOptions(shard_frames=8)


def options(case: str, *variables: str, **more: object) -> GriddedOptions:
    content = {"path": str(case_file(case)), "variables": list(variables or ["v"]), **more}
    return GriddedOptions.model_validate(content)


def ingested(tmp_path, source: GriddedOptions, rules: IngestOptions = SMALL) -> xr.Dataset:
    ingest(source, rules, tmp_path / "o.zarr")
    return store.open_observations(tmp_path / "o.zarr").load()


def refusal(source: GriddedOptions, rules: IngestOptions = SMALL) -> str:
    with pytest.raises(InputError) as caught:
        inspect_source(source, rules)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def hours(*numbers: int) -> np.ndarray:
    return np.datetime64("2020-01-01", "ns") + np.array(numbers) * np.timedelta64(1, "h")


@pytest.mark.parametrize(
    ("case", "expected", "corner"),
    [
        ("grib/single_0*.grib2", range(6), [0, 100, 200, 300, 400, 500]),
        ("grib/step6.grib", range(6, 42, 6), [0, 600, 1200, 1800, 0, 600]),
        ("grib/steps.grib", range(6), [0, 100, 200, 300, 400, 500]),
        ("grib/gfs.f0*.grib2", (3, 6, 9), [3, 6, 9]),
    ],
)
def test_grib_forecasts_stand_at_their_valid_times(tmp_path, case, expected, corner):
    observed = ingested(tmp_path, options(case, "t2m"))
    np.testing.assert_array_equal(observed.time.values, hours(*expected))
    np.testing.assert_allclose(observed.t2m.values[:, 0, 0], corner)
    assert observed.frame_present.all()


@pytest.mark.parametrize(("case", "first"), [("netcdf/fc.nc", 6)])
def test_netcdf_forecasts_stand_at_their_valid_times(tmp_path, case, first):
    observed = ingested(tmp_path, options(case))
    np.testing.assert_array_equal(observed.time.values, hours(*range(first, first + 6)))


def test_a_scalar_time_is_one_frame_at_the_valid_time():
    (segment,) = open_source(options("netcdf/scalar.nc")).segments()
    np.testing.assert_array_equal(segment.times, hours(6))
    assert segment.read(np.array([0]), slice(0, 3), slice(0, 3)).v.shape == (1, 3, 3)
    assert "a single time" in refusal(options("netcdf/scalar.nc"))


def test_era5_precipitation_becomes_a_series_of_valid_times(tmp_path):
    observed = ingested(tmp_path, options("grib/era5_tp.grib", "tp"))
    np.testing.assert_array_equal(observed.time.values, hours(*range(6, 78)))
    np.testing.assert_allclose(observed.tp.values[:13, 0, 0], [*range(1, 13), 1], rtol=1e-5)  # mm in its hour
    assert observed.tp.attrs["units"] == "mm h-1"


def test_era5_variables_of_different_times_share_an_axis(tmp_path):
    observed = ingested(tmp_path, options("grib/era5_both.grib", "t2m", "tp"))
    np.testing.assert_array_equal(observed.time.values, hours(*range(observed.time.size)))
    assert np.isnan(observed.tp.values[:6]).all()
    np.testing.assert_allclose(observed.tp.values[6, 0, 0], 1, rtol=1e-5)
    assert (observed.t2m.attrs["units"], observed.tp.attrs["units"]) == ("K", "mm h-1")
    np.testing.assert_allclose(observed.t2m.values[:48, 0, 0], 280)


def test_a_broken_message_is_named():
    message = refusal(options("grib/corrupt.grib", "t2m"))
    assert message.startswith(f"{case_file('grib/corrupt.grib')}: GRIB message 4 is broken")


def test_a_message_that_is_there_twice_is_refused():
    assert "time 2020-01-01 02:00:00 is already in" in refusal(options("grib/dup.grib", "t2m"))
    kept = inspect_source(options("grib/dup.grib", "t2m"), IngestOptions(duplicates="first"))
    assert kept.duplicates == 1


def test_one_member_is_chosen(tmp_path):
    observed = ingested(tmp_path, options("grib/members.grib", "t2m", select={"number": 1}))
    np.testing.assert_array_equal(observed.time.values, hours(0, 1, 2, 3))
    np.testing.assert_allclose(observed.t2m.values[:, 0, 0], 1)
    assert "'t2m' has 0, 1, 2: choose one of them" in refusal(options("grib/members.grib", "t2m", select={"number": 7}))
    observed = inspect_source(options("netcdf/ens.nc", select={"member": 2}))
    assert observed.time_axis.times.size == 6
    assert "choose one of member 0, 1, 2 by source.select" in refusal(options("netcdf/ens.nc"))


def test_one_level_needs_no_choice():
    assert inspect_source(options("netcdf/lev1.nc")).grid_shape == (4, 4)


def test_a_calendar_without_leap_days_misses_one(tmp_path):
    assert ingested(tmp_path, options("netcdf/noleap.nc")).frame_present.all()
    days = dates_of("a.nc", np.array([57.0, 58.0, 59.0]), "days since 2020-01-01", "noleap")
    assert [str(day)[:10] for day in days] == ["2020-02-27", "2020-02-28", "2020-03-01"]
    with pytest.raises(InputError, match="2021-02-30 of calendar 360_day is no date"):
        dates_of("a.nc", np.array([59.0]), "days since 2021-01-01", "360_day")


def test_a_field_without_time_is_refused():
    assert "'z' does not change with time" in refusal(options("netcdf/static.nc", "v", "z"))


def test_a_variable_in_a_group_is_found():
    assert inspect_source(options("netcdf/group.nc", "precipitation")).grid_shape == (4, 4)
    assert "found Grid/precipitation" in refusal(options("netcdf/group.nc", "rain"))


def test_cdf5_is_named():
    assert "a CDF-5 file" in refusal(options("netcdf/cdf5.nc"))
