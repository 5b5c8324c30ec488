"""Init times against hand-computed ones and against a slow twin that walks along the axis."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from fieldcast.pipeline.config import Schedule
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.schedule import CycleSchedule, cron_trigger, merge_spans

MINUTE = timedelta(minutes=1)


def when(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


FIVE = CycleSchedule.of(5, 0, None, history=3, horizon=4)
HOURLY = CycleSchedule.of(5, 120, 60, history=2, horizon=1)  # frames two minutes after whole steps


def test_floor() -> None:
    assert FIVE.floor(when("2020-10-31T06:04:59")) == when("2020-10-31T06:00")
    assert FIVE.floor(when("2020-10-31T06:05")) == when("2020-10-31T06:05")
    assert HOURLY.floor(when("2020-10-31T06:01:59")) == when("2020-10-31T05:02")
    assert HOURLY.floor(when("2020-10-31T06:02")) == when("2020-10-31T06:02")
    assert FIVE.floor(when("1969-12-31T23:59")) == when("1969-12-31T23:55")
    assert CycleSchedule.of(5, 0, 1440, 1, 1).floor(when("2020-02-29T13:00")) == when("2020-02-29T00:00")


def test_after_leaves_none_out_and_makes_none_twice() -> None:
    assert FIVE.after(when("2020-12-31T23:50"), when("2021-01-01T00:04")) == [
        when("2020-12-31T23:55"),
        when("2021-01-01T00:00"),
    ]
    assert FIVE.after(when("2020-10-31T06:00"), when("2020-10-31T06:04:59")) == []
    assert FIVE.after(when("2020-10-31T06:00"), when("2020-10-31T05:00")) == []
    assert HOURLY.after(
        when("2020-10-25T00:30"), when("2020-10-25T03:30")
    ) == [  # clocks in Europe go back: UTC does not
        when("2020-10-25T01:02"),
        when("2020-10-25T02:02"),
        when("2020-10-25T03:02"),
    ]


def test_after_is_a_walk_along_the_axis() -> None:
    rng = random.Random(0)
    for _ in range(200):
        step = rng.choice([1, 2, 5, 10, 15])
        axis = CycleSchedule.of(step, rng.randrange(60 * step), step * rng.choice([1, 3, 12]), 1, 1)
        last = when("2024-02-28T12:00") + rng.randrange(2 * 86400) * timedelta(seconds=1)
        until = last + rng.randrange(-3600, 6 * 3600) * timedelta(seconds=1)
        walk = datetime(2024, 1, 1, tzinfo=UTC)
        walk = next(it for it in (walk + i * timedelta(seconds=1) for i in range(86400)) if axis.floor(it) == it)
        expected = []
        while walk <= until:
            if walk > last:
                expected.append(walk)
            walk += axis.every
        assert axis.after(last, until) == expected
        half = last + (until - last) / 2
        if until > last:
            assert axis.after(last, half) + axis.after(half, until) == expected


def test_histories_and_truths_are_frames_on_the_models_step() -> None:
    assert FIVE.history_times(when("2024-03-01T00:05")) == [
        when("2024-02-29T23:55"),
        when("2024-03-01T00:00"),
        when("2024-03-01T00:05"),
    ]
    assert HOURLY.history_times(when("2024-03-01T00:02")) == [when("2024-02-29T23:57"), when("2024-03-01T00:02")]
    assert FIVE.valid_times(when("2020-12-31T23:50")) == [
        when("2020-12-31T23:50") + i * 5 * MINUTE for i in (1, 2, 3, 4)
    ]


def test_what_is_no_init_time_is_refused_with_one_that_is() -> None:
    FIVE.require(when("2020-10-31T06:05"))
    with pytest.raises(
        InputError, match=r"--at 2020-10-31T06:03:00 is no init time.* every 0:05:00 such as 2020-10-31T06:00:00"
    ):
        FIVE.require(when("2020-10-31T06:03"))
    with pytest.raises(InputError, match=r"live.every_minutes is 7, expected a multiple of the model's 5 minutes"):
        CycleSchedule.of(5, 0, 7, 1, 1)


def test_spans_that_touch_become_one() -> None:
    at = [when("2020-10-31T06:00") + i * MINUTE for i in range(10)]
    assert merge_spans([]) == []
    assert merge_spans([(at[4], at[6]), (at[0], at[1]), (at[1], at[2]), (at[5], at[5]), (at[8], at[9])]) == [
        (at[0], at[2]),
        (at[4], at[6]),
        (at[8], at[9]),
    ]
    assert merge_spans([(at[0], at[9]), (at[1], at[2])]) == [(at[0], at[9])]


@pytest.mark.parametrize("cron", ["0 0 31 2 *", "0 0 30 2 *", "0 6 31 4,6,9,11 *"])
def test_a_day_that_no_year_has_is_refused(cron: str) -> None:
    with pytest.raises(InputError, match="a day that no year has"):
        cron_trigger(Schedule(cron=cron))
    cron_trigger(Schedule(cron="0 0 29 2 *"))


def test_steps_of_seconds_keep_leads_and_init_times_exact():
    schedule = CycleSchedule.of(2.5, 0, None, 2, 3)
    init = datetime(2024, 1, 1, 0, 2, 30, tzinfo=UTC)
    assert schedule.floor(init + timedelta(seconds=149)) == init
    assert [time - init for time in schedule.valid_times(init)] == [timedelta(seconds=150 * k) for k in (1, 2, 3)]
