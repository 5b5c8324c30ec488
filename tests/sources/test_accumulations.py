"""Accumulations become rates over their own period and stand at its end."""

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions, IngestOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.ingest import ingest
from fieldcast.pipeline.sources import inspect_source, open_source
from tests.sources import gribs

DEGREES = {
    **{
        "gridType": "regular_ll",
        "Ni": 3,
        "Nj": 2,
        "iDirectionIncrementInDegrees": 1,
        "jDirectionIncrementInDegrees": 1,
    },
    **{"latitudeOfFirstGridPointInDegrees": 50, "latitudeOfLastGridPointInDegrees": 49},
    **{"longitudeOfFirstGridPointInDegrees": 5, "longitudeOfLastGridPointInDegrees": 7},
}
RAIN = {  # total precipitation, kg m-2, as the American centre has it
    **{
        "centre": 7,
        "discipline": 0,
        "parameterCategory": 1,
        "parameterNumber": 8,
        "productDefinitionTemplateNumber": 8,
    },
    **{"typeOfStatisticalProcessing": 1, "typeOfFirstFixedSurface": 1},
}


def rain(step_range: str, amount: float, **more: int) -> tuple[dict[str, object], np.ndarray]:
    return {**RAIN, **DEGREES, **gribs.DAY, **more, "stepRange": step_range}, np.full((2, 3), amount)


def source(tmp_path, name: str, *variables: str, **more: object) -> GriddedOptions:
    return GriddedOptions.model_validate({"path": str(tmp_path / name), "variables": list(variables), **more})


def ingested(tmp_path, options: GriddedOptions) -> xr.Dataset:
    ingest(options, IngestOptions(shard_frames=8), tmp_path / "o.zarr")
    return store.open_observations(tmp_path / "o.zarr").load()


def hours(*numbers: float) -> np.ndarray:
    return np.datetime64("2020-01-01", "ns") + (np.array(numbers) * 3600).astype("timedelta64[s]")


@pytest.mark.parametrize(
    ("messages", "times", "rates"),
    [
        ([("0-3", 6), ("3-6", 3), ("6-9", 0)], (3, 6, 9), (2, 1, 0)),  # of three hours each
        ([("0-3", 6), ("0-6", 9), ("0-9", 18)], (3, 6, 9), (2, 1.5, 2)),  # since the start: means since then
        ([("0-1", 6), ("1-2", 3)], (1, 2), (6, 3)),
    ],
)
def test_grib_accumulations_are_rates_at_the_end_of_their_period(tmp_path, messages, times, rates):
    gribs.write(tmp_path / "a.grib2", [rain(steps, amount) for steps, amount in messages])
    observed = ingested(tmp_path, source(tmp_path, "a.grib2", "tp"))
    np.testing.assert_array_equal(observed.time.values, hours(*times))
    np.testing.assert_allclose(observed.tp.values[:, 1, 2], rates, rtol=1e-5)
    assert observed.tp.attrs["units"] == "mm h-1"


def test_periods_of_minutes(tmp_path):
    quarters = [rain(f"{start}-{start + 15}", amount, stepUnits=0) for start, amount in ((0, 1), (15, 2), (30, 0.5))]
    gribs.write(tmp_path / "a.grib2", quarters)
    observed = ingested(tmp_path, source(tmp_path, "a.grib2", "tp"))
    np.testing.assert_array_equal(observed.time.values, hours(0.25, 0.5, 0.75))
    np.testing.assert_allclose(observed.tp.values[:, 0, 0], [4, 8, 2], rtol=1e-5)


def test_two_periods_that_end_together_need_a_choice(tmp_path):
    both = [rain("0-3", 6), rain("3-6", 3), rain("0-6", 9), rain("6-9", 0), rain("0-9", 18)]
    gribs.write(tmp_path / "a.grib2", both)
    with pytest.raises(InputError, match="time 2020-01-01 06:00:00 is already in"):
        inspect_source(source(tmp_path, "a.grib2", "tp"), IngestOptions())
    chosen = ingested(tmp_path, source(tmp_path, "a.grib2", "tp", select={"lengthOfTimeRange": 3}))
    np.testing.assert_allclose(chosen.tp.values[:, 0, 0], [2, 1, 0], rtol=1e-5)


def era5(kind: str, steps: str, amount: float, time: int) -> tuple[dict[str, object], np.ndarray]:
    keys = {"centre": 98, "class": "ea", "type": kind, "indicatorOfParameter": 228, "table2Version": 128}
    keys |= {"indicatorOfTypeOfLevel": 1, **DEGREES, **gribs.DAY, "dataTime": time}
    return {**keys, "timeRangeIndicator": 4 if "-" in steps else 0, "stepRange": steps}, np.full((2, 3), amount)


def test_era5_sums_since_the_step_before_whatever_the_range_says(tmp_path):
    hourly = [era5("fc", f"0-{step}", step / 1000, 600) for step in (1, 2, 3)]
    gribs.write(tmp_path / "a.grib", hourly, "GRIB1")
    observed = ingested(tmp_path, source(tmp_path, "a.grib", "tp"))
    np.testing.assert_array_equal(observed.time.values, hours(7, 8, 9))
    np.testing.assert_allclose(observed.tp.values[:, 0, 0], [1, 2, 3], rtol=1e-4)


@pytest.mark.parametrize("kind", ["fc", "an"])
def test_a_sum_of_unknown_period_is_no_amount_and_no_rate_without_a_word(tmp_path, kind):
    steps = (1, 2, 3) if kind == "fc" else (0,)  # of one analysis alone nobody knows the step
    gribs.write(tmp_path / "a.grib", [era5(kind, str(step), 0.001 * (step + 1), 600) for step in steps], "GRIB1")
    with pytest.raises(InputError, match=r"a.grib: 'tp' is a sum over time, and .*source.accumulated_minutes, such as"):
        inspect_source(source(tmp_path, "a.grib", "tp"))
    grid, values = first_cell(source(tmp_path, "a.grib", "tp", accumulated_minutes={"tp": 30}))
    assert grid.tp.attrs["units"] == "mm h-1"
    np.testing.assert_allclose(values, [2 * (step + 1) for step in steps], rtol=1e-4)
    grid, values = first_cell(source(tmp_path, "a.grib", "tp", units={"tp": "m"}))
    assert grid.tp.attrs["units"] == "m"
    np.testing.assert_allclose(values, [0.001 * (step + 1) for step in steps], rtol=1e-4)


def first_cell(options: GriddedOptions) -> tuple[xr.Dataset, np.ndarray]:
    """Return the grid of a source of one file, and the values of its first cell."""
    opened = open_source(options)
    (segment,) = opened.segments()
    return opened.grid(), segment.read(np.arange(segment.times.size), slice(0, 1), slice(0, 1)).tp.values[:, 0, 0]


def hourly(count: int = 4, **more: object) -> list[tuple[dict[str, object], np.ndarray]]:
    """Return fields of temperature, an hour apart."""
    keys = {**DEGREES, **gribs.SCREEN, **gribs.DAY, **more}
    return [({**keys, "dataTime": 100 * hour}, np.full((2, 3), 280.0 + hour)) for hour in range(count)]


def test_a_message_whose_beginning_is_damaged_is_named(tmp_path):
    gribs.write(tmp_path / "a.grib2", hourly())
    content = (tmp_path / "a.grib2").read_bytes()
    second = content.index(b"GRIB", 10)
    for spoilt in (second, content.rindex(b"GRIB")):
        (tmp_path / "a.grib2").write_bytes(content[:spoilt] + b"grib" + content[spoilt + 4 :])
        with pytest.raises(InputError, match=rf"GRIB message \d is broken .byte {spoilt} on.: replace the file"):
            inspect_source(source(tmp_path, "a.grib2", "t2m"))
    header = b"\x01\r\r\nTTAA00 KWBC 010000\r\r\n"  # as bulletins have it
    (tmp_path / "a.grib2").write_bytes(content[:second] + header + content[second:])
    assert inspect_source(source(tmp_path, "a.grib2", "t2m")).time_axis.times.size == 4


def test_messages_of_another_grid_are_named(tmp_path):
    wider = {**hourly()[1][0], "Ni": 4, "longitudeOfLastGridPointInDegrees": 8}
    gribs.write(tmp_path / "a.grib2", [hourly()[0], (wider, np.zeros((2, 4))), hourly()[2]])
    with pytest.raises(InputError, match=r"message 2 \('t2m'\) has another grid than message 1"):
        inspect_source(source(tmp_path, "a.grib2", "t2m"))


def test_a_key_that_no_message_has_is_named(tmp_path):
    gribs.write(tmp_path / "a.grib2", hourly(2))
    with pytest.raises(InputError, match=r"source.select names 'lev', which no message has"):
        inspect_source(source(tmp_path, "a.grib2", "t2m", select={"lev": 2}))


def test_units_by_the_options_leave_an_accumulation_what_it_is(tmp_path):
    gribs.write(tmp_path / "a.grib2", [rain("0-3", 6), rain("3-6", 3)])
    grid, values = first_cell(source(tmp_path, "a.grib2", "tp", units="mm"))
    assert grid.tp.attrs["units"] == "mm"
    np.testing.assert_allclose(values, [6, 3], rtol=1e-5)


def test_the_sum_over_no_time_at_the_start_of_a_forecast_is_left_out(tmp_path):
    gribs.write(tmp_path / "a.grib2", [rain("0-0", 0), rain("0-3", 6), rain("3-6", 3)])
    grid, values = first_cell(source(tmp_path, "a.grib2", "tp"))
    assert grid.tp.attrs["units"] == "mm h-1"
    np.testing.assert_allclose(values, [2, 1], rtol=1e-5)


@pytest.mark.parametrize("attributes", [{"GRIB_stepType": "accum"}, {"long_name": "Total precipitation"}])
def test_precipitation_as_the_climate_data_store_has_it_needs_a_period(tmp_path, attributes):
    values = np.array([0.001, 0.002], np.float32)[:, None, None] * np.ones((2, 3), np.float32)
    coords = {"valid_time": hours(1, 2), "latitude": [2.0, 1.0], "longitude": [1.0, 2.0, 3.0]}
    field = (("valid_time", "latitude", "longitude"), values, {"units": "m", **attributes})
    xr.Dataset({"tp": field}, coords).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    assert "'tp' is a sum over time, and the file does not tell its period" in refused(tmp_path, "tp")
    grid, values = first_cell(source(tmp_path, "a.nc", "tp", accumulated_minutes={"tp": 60}))
    assert grid.tp.attrs["units"] == "mm h-1"
    np.testing.assert_allclose(values, [1, 2], rtol=1e-5)


def test_sums_of_a_calendar_without_leap_days_have_its_periods(tmp_path):
    time = ("time", [58.5, 59.5], {"units": "days since 2020-01-01", "calendar": "noleap", "bounds": "time_bnds"})
    bounds = ("time", "nv"), [[58.0, 59.0], [59.0, 60.0]]
    values = np.full((2, 2, 3), 24, np.float32)
    field = ("time", "lat", "lon"), values, {"units": "mm", "cell_methods": "time: sum"}
    dataset = xr.Dataset({"tp": field, "time_bnds": bounds}, {"time": time, "lat": [2.0, 1.0], "lon": [1.0, 2.0, 3.0]})
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    (segment,) = open_source(source(tmp_path, "a.nc", "tp")).segments()
    assert [str(time)[:10] for time in segment.times] == ["2020-03-01", "2020-03-02"]  # the first is of 28 February
    np.testing.assert_allclose(segment.read(np.arange(2), slice(0, 1), slice(0, 1)).tp.values.ravel(), [1, 1])


def summed(tmp_path, units: str = "kg m-2", bounds: bool = True, **more: xr.DataArray) -> None:
    """Write sums of 1, 2 and 0 over hours that are marked in their middle; the last period has three hours."""
    middle, ends = hours(0.5, 1.5, 3.5), np.stack([hours(0, 1, 2), hours(1, 2, 5)], axis=1)
    attributes = {"units": units, "cell_methods": "area: mean time: sum", "valid_max": 9.0}
    values = np.tile(np.array([1, 2, 6], np.float32)[:, None, None], (1, 2, 3))
    coords = {"time": ("time", middle, {"bounds": "time_bnds"} if bounds else {}), "lat": [2.0, 1.0]}
    dataset = xr.Dataset({"pr": (("time", "lat", "lon"), values, attributes)}, {**coords, "lon": [1.0, 2.0, 3.0]})
    if bounds:
        dataset["time_bnds"] = (("time", "nv"), ends)
    encoding = {"time": {"units": "minutes since 2020-01-01", "dtype": "int64"}}
    dataset.assign(more).to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding=encoding)


def test_netcdf_sums_are_rates_at_the_end_of_their_bounds(tmp_path):
    summed(tmp_path)
    (segment,) = open_source(source(tmp_path, "a.nc", "pr")).segments()
    np.testing.assert_array_equal(segment.times, hours(1, 2, 5))
    read = segment.read(np.arange(3), slice(0, 2), slice(0, 3))
    np.testing.assert_allclose(read.pr.values[:, 1, 2], [1, 2, 2])  # the last of three hours
    assert read.pr.attrs["units"] == "mm h-1"
    grid = open_source(source(tmp_path, "a.nc", "pr")).grid()
    assert grid.pr.attrs["cell_methods"] == "area: mean time: mean"
    assert (grid.pr.attrs["units"], grid.pr.attrs["valid_max"]) == ("mm h-1", 9.0)
    np.testing.assert_allclose(segment.read(np.array([2]), slice(0, 1), slice(0, 1)).pr.values, [[[2]]])


def refused(tmp_path, *variables: str) -> str:
    with pytest.raises(InputError) as caught:
        open_source(source(tmp_path, "a.nc", *variables)).segments()
    return str(caught.value)


def test_sums_without_bounds_are_refused_by_name(tmp_path):
    summed(tmp_path, bounds=False)
    assert "'pr' is a sum over time, and the file does not tell its period" in refused(tmp_path, "pr")
    named = source(tmp_path, "a.nc", "pr", units={"pr": "mm"})  # whoever names the units knows what it is
    np.testing.assert_array_equal(open_source(named).segments()[0].times, hours(0.5, 1.5, 3.5))


def test_sums_of_unknown_units_are_refused_by_name(tmp_path):
    summed(tmp_path, units="furlong")
    assert "'pr' is a sum over time in furlong, expected one of m, mm" in refused(tmp_path, "pr")


def test_sums_beside_variables_of_other_times_are_refused_by_name(tmp_path):
    field = xr.DataArray(np.zeros((3, 2, 3), np.float32), dims=("time", "lat", "lon"), attrs={"units": "K"})
    summed(tmp_path, t2m=field)
    assert "'pr' is a sum over a period that ends at 2020-01-01T01:00:00, but 't2m' stands" in refused(
        tmp_path, "t2m", "pr"
    )
