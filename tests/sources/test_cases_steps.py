"""Steps that are no whole minutes, jitter and several steps in one archive."""

from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldcast.pipeline.config.sources import GriddedOptions, IngestOptions
from fieldcast.pipeline.datasets.times import from_minutes, minutes_of
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source
from fieldcast.pipeline.sources.time_axis import TimeAxis, fit_time_axis
from tests.sources.test_cases_times import options

START = np.datetime64("2020-01-01", "s")
LONGEST = 200_000  # seconds


def fitted(seconds: object, step_minutes: float | None = None) -> TimeAxis:
    times = START + np.asarray(seconds).astype("timedelta64[s]")
    return fit_time_axis(["a"], [times.astype("datetime64[ns]")], None, step_minutes, IngestOptions())


def test_jitter_is_snapped():
    axis = inspect_source(options("netcdf/jitter.nc")).time_axis
    np.testing.assert_array_equal(axis.times.astype("datetime64[s]"), START + 300 * np.arange(10))
    assert axis.present.all()


def test_mixed_steps_take_a_common_multiple():
    axis = inspect_source(options("netcdf/mixed.nc", step_minutes=360)).time_axis
    assert np.unique(np.diff(axis.times)) == np.timedelta64(6, "h")
    assert axis.present.all()


def test_mixed_steps_without_a_choice_name_one():
    with pytest.raises(InputError, match="step_minutes to a multiple of all steps such as 360"):
        fitted([0, 6 * 3600, 12 * 3600, 18 * 3600, 24 * 3600, 27 * 3600, 30 * 3600])


def test_months_are_refused_with_the_reason():
    months = np.arange("2020-01", "2022-01", dtype="datetime64[M]").astype("datetime64[s]") - START
    with pytest.raises(InputError, match="steps of 28 to 31 days: months and years have no regular step"):
        fitted(months)


@pytest.mark.parametrize("step", [1.5, 0.5, 2.5, 1 / 3])
def test_step_minutes_takes_fractions(step):
    assert GriddedOptions(path="a", variables=["v"], step_minutes=step).step_minutes == step
    axis = fitted(np.arange(20) * 10, step)
    assert np.unique(np.diff(axis.times)) == from_minutes(step)


def test_a_fraction_of_a_second_is_refused():
    with pytest.raises(ValueError, match="no whole number of seconds"):
        GriddedOptions(path="a", variables=["v"], step_minutes=0.001)


@given(step=st.integers(1, LONGEST), count=st.integers(2, 50), phase=st.integers(0, LONGEST))
@settings(max_examples=100, deadline=None)
def test_a_regular_axis_of_any_step_stays_exact(step, count, phase):
    times = phase + step * np.arange(count)
    axis = fitted(times)
    np.testing.assert_array_equal(axis.times.astype("datetime64[s]"), START + times)
    assert from_minutes(minutes_of(np.timedelta64(step, "s"))) == np.timedelta64(step, "s")


@given(minutes=st.integers(1, 60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_jitter_below_the_tolerance_never_loses_a_frame(minutes, data):
    step = 60 * minutes
    most = max(0, int(min(0.02 * step, 12)) - 1)
    jitter = data.draw(st.lists(st.integers(-most, most), min_size=3, max_size=30))
    times = step * (1 + np.arange(len(jitter))) + np.array(jitter)
    axis = fitted(times)
    assert axis.present.all()
    assert np.abs((axis.times.astype("datetime64[s]") - START).astype(int) - times).max() <= 0.05 * step


def test_period_and_step_together():
    times = np.arange(10) * 150
    period = (datetime(2020, 1, 1), datetime(2020, 1, 1, 0, 15))
    axis = fit_time_axis(
        ["a"], [(START + times.astype("timedelta64[s]")).astype("datetime64[ns]")], period, None, IngestOptions()
    )
    assert axis.times.size == 7
