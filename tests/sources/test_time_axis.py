from datetime import datetime

import numpy as np
import pytest

from fieldcast.pipeline.config.sources import IngestOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.time_axis import TimeAxis, fit_time_axis

STRICT = IngestOptions()


def minutes(*values: float) -> np.ndarray:
    return np.datetime64("2020-01-01", "ns") + (np.array(values) * 60e9).astype("timedelta64[ns]")


def plan(*parts: np.ndarray, period=None, step_minutes=None, rules=STRICT) -> TimeAxis:
    return fit_time_axis([f"file {n}" for n in range(len(parts))], parts, period, step_minutes, rules)


def test_missing_frames_keep_their_place():
    it = plan(minutes(0, 5), minutes(20))
    np.testing.assert_array_equal(it.times, minutes(0, 5, 10, 15, 20))
    np.testing.assert_array_equal(it.present, [True, True, False, False, True])
    np.testing.assert_array_equal(it.slots, [0, 1, 4])
    np.testing.assert_array_equal(it.entries.segment, [0, 0, 1])


def test_period_includes_both_ends():
    it = plan(minutes(0, 5, 10, 15, 20), period=(datetime(2020, 1, 1, 0, 5), datetime(2020, 1, 1, 0, 15)))
    np.testing.assert_array_equal(it.times, minutes(5, 10, 15))
    np.testing.assert_array_equal(it.entries.frame, [1, 2, 3])


def test_a_longer_step_leaves_frames_out():
    it = plan(minutes(0, 5, 10, 15, 20, 25), step_minutes=10)
    np.testing.assert_array_equal(it.times, minutes(0, 10, 20))
    np.testing.assert_array_equal(it.entries.frame, [0, 2, 4])


def test_times_are_rounded_to_seconds():
    np.testing.assert_array_equal(plan(minutes(0, 5 + 1e-5, 10 - 1e-5)).times, minutes(0, 5, 10))


@pytest.mark.parametrize(("rule", "parts"), [("first", [0, 0, 2]), ("last", [0, 1, 2]), ("merge", [0, 0, 1, 2])])
def test_rules_for_duplicates(rule, parts):
    it = plan(minutes(0, 5), minutes(5), minutes(10), rules=IngestOptions(duplicates=rule))
    np.testing.assert_array_equal(it.entries.segment, parts)
    assert it.duplicates == 1
    assert it.times.size == 3


def test_sorted_when_asked():
    it = plan(minutes(10), minutes(0, 5), rules=IngestOptions(out_of_order="sort"))
    np.testing.assert_array_equal(it.times, minutes(0, 5, 10))
    np.testing.assert_array_equal(it.entries.segment, [1, 1, 0])


@pytest.mark.parametrize(
    ("parts", "more", "message"),
    [
        (
            [minutes(0, 5), minutes(5)],
            {},
            "file 1: time 2020-01-01 00:05:00 is already in file 0: .* ingest.duplicates",
        ),
        (
            [minutes(10), minutes(0, 5)],
            {},
            "file 1: time 2020-01-01 00:00:00 comes after 2020-01-01 00:10:00 of file 0",
        ),
        ([minutes(0, 5, 10, 12, 15)], {}, "file 0: time 2020-01-01 00:12:00 is not on the regular axis"),
        ([minutes(0, 5, 10)], {"step_minutes": 7}, "source.step_minutes is 7, expected a multiple of the archive's 5"),
        ([minutes(0, 5, 10)], {"step_minutes": 60}, "source.step_minutes is 60: one frame is left"),
        ([minutes(0)], {}, "a single time in the archive"),
        ([minutes()], {}, "the archive has no frames"),
        (
            [minutes(0, 5)],
            {"period": (datetime(2021, 1, 1), datetime(2021, 1, 2))},
            "source.period is .* no frame inside",
        ),
    ],
)
def test_errors_name_part_and_time(parts, more, message):
    with pytest.raises(InputError, match=message):
        plan(*parts, **more)
