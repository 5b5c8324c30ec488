"""Fields belong to their valid time, accumulations to their period: files of forecasts, one field a file, members."""

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions, IngestOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.ingest import ingest
from fieldcast.pipeline.sources import inspect_source, open_source
from fieldcast.pipeline.sources.labels import is_label
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


@pytest.mark.parametrize(
    ("label", "wanted", "same"),
    [
        (850.0, 850, True),
        (np.int64(0), "0", True),
        ("0001", 1.0, True),  # as YAML reads 0001
        ("b", "b", True),
        (850.0, 851, False),
        (None, 1, False),
        ("b", 1, False),
    ],
)
def test_labels_are_known_by_text_and_by_number(label, wanted, same):
    assert is_label(label, wanted) is same


def test_one_level_needs_no_choice():
    assert inspect_source(options("netcdf/lev1.nc")).grid_shape == (4, 4)


def test_a_calendar_without_leap_days_misses_one(tmp_path):
    assert ingested(tmp_path, options("netcdf/noleap.nc")).frame_present.all()


@pytest.mark.parametrize(
    ("calendar", "days", "dates"),
    [
        ("noleap", [57, 58, 59], ["2020-02-27", "2020-02-28", "2020-03-01"]),
        ("365_day", [58, 59], ["2020-02-28", "2020-03-01"]),
        ("all_leap", [58, 59, 60], ["2020-02-28", "2020-02-29", "2020-03-01"]),
        ("360_day", [57, 58, 59, 60], ["2020-02-28", "2020-02-29", "2020-03-01"]),  # 30 February is left out
        ("julian", [0, 1], ["2020-01-14", "2020-01-15"]),
        ("proleptic_gregorian", [0.25, 1.25], ["2020-01-01", "2020-01-02"]),
    ],
)
def test_every_calendar_is_read(tmp_path, calendar, days, dates):
    write_days(tmp_path / "a.nc", days, calendar=calendar)
    (segment,) = open_source(GriddedOptions(path=str(tmp_path / "a.nc"), variables=["v"])).segments()
    assert [str(time)[:10] for time in segment.times] == dates
    read = segment.read(np.arange(segment.times.size), slice(0, 2), slice(0, 2))
    kept = [day for day in days if (calendar, day) != ("360_day", 59)]
    np.testing.assert_array_equal(read.v.values[:, 0, 0], kept)


@pytest.mark.parametrize(
    ("units", "calendar", "message"),
    [
        ("days since 0850-01-01", "noleap", "'time' holds 0850-01-01 00:00:00, expected years 1678 to 2261"),
        ("days since planting", "standard", "'time' has units 'days since planting' and calendar 'standard', expected"),
        ("days since 2000-01-01", "martian", "'time' has units 'days since 2000-01-01' and calendar 'martian'"),
    ],
)
def test_times_without_a_meaning_are_named(tmp_path, units, calendar, message):
    write_days(tmp_path / "a.nc", [0, 1], units, calendar)
    with pytest.raises(InputError, match=message):
        inspect_source(GriddedOptions(path=str(tmp_path / "a.nc"), variables=["v"]))


def test_other_variables_of_such_times_are_left_out(tmp_path):
    age = ("time", [3.0, 4.0], {"units": "days since planting"})
    write_days(tmp_path / "a.nc", [0, 1], more={"age": age})
    info = inspect_source(GriddedOptions(path=str(tmp_path / "a.nc"), variables=["v"]))
    assert info.time_axis.times.size == 2


def write_days(path, days, units="days since 2020-01-01", calendar="standard", more=None):
    """Write a field that holds the number of each day."""
    values = np.broadcast_to(np.array(days, np.float32)[:, None, None], (len(days), 2, 2))
    time = ("time", np.array(days, float), {"units": units, "calendar": calendar})
    coords = {"time": time, "lat": [2.0, 1.0], "lon": [1.0, 2.0]}
    dataset = xr.Dataset({"v": (("time", "lat", "lon"), values, {"units": "K"}), **(more or {})}, coords)
    dataset.to_netcdf(path, engine="h5netcdf")


def test_a_field_without_time_is_refused():
    assert "'z' does not change with time" in refusal(options("netcdf/static.nc", "v", "z"))


def test_a_variable_in_a_group_is_found():
    assert inspect_source(options("netcdf/group.nc", "precipitation")).grid_shape == (4, 4)
    assert "found Grid/precipitation" in refusal(options("netcdf/group.nc", "rain"))


def test_cdf5_is_named():
    assert "a CDF-5 file" in refusal(options("netcdf/cdf5.nc"))
