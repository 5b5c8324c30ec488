"""Init times and the frames around them, all multiples of a step from one anchor; and when `fieldcast serve` wakes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]

from fieldcast.pipeline.config import Schedule
from fieldcast.pipeline.errors import InputError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LEAP_DAYS_FROM = datetime(2024, 1, 1, tzinfo=UTC)
Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class CycleSchedule:
    """The regular times of the training data, and those of them that are init times of scheduled forecasts."""

    step: timedelta
    phase: timedelta  # of frames after multiples of the step since 1970
    every: timedelta  # between init times
    history: int
    horizon: int

    @classmethod
    def of(
        cls, step_minutes: float, phase_seconds: int, every_minutes: int | None, history: int, horizon: int
    ) -> CycleSchedule:
        """Return the schedule of a model; raise `InputError` where `every_minutes` is no multiple of its step."""
        step = timedelta(seconds=round(60 * step_minutes))
        every = timedelta(minutes=every_minutes) if every_minutes else step
        if every % step:
            raise InputError(
                f"params.yaml: live.every_minutes is {every_minutes}, expected a multiple of the model's "
                f"{step_minutes:g} minutes"
            )
        return cls(step, timedelta(seconds=phase_seconds), every, history, horizon)

    def floor(self, moment: datetime) -> datetime:
        """Return the last init time at or before `moment`."""
        return moment - (moment - EPOCH - self.phase) % self.every

    def after(self, last: datetime, until: datetime) -> list[datetime]:
        """Return the init times after `last` up to `until`."""
        first = self.floor(last) + self.every
        count = max(0, (until - first) // self.every + 1)
        return [first + i * self.every for i in range(count)]

    def next_frame(self, moment: datetime) -> datetime:
        """Return the time of the first frame after `moment`."""
        return moment - (moment - EPOCH - self.phase) % self.step + self.step

    def require(self, init_time: datetime) -> None:
        """Raise `InputError` unless `init_time` is one."""
        if (before := self.floor(init_time)) != init_time:
            raise InputError(
                f"--at {init_time:%Y-%m-%dT%H:%M:%S} is no init time, expected one every {self.every} such as "
                f"{before:%Y-%m-%dT%H:%M:%S}"
            )

    def history_times(self, init_time: datetime) -> list[datetime]:
        """Return the times of the frames that a forecast is made from, the init time last."""
        return [init_time - i * self.step for i in reversed(range(self.history))]

    def valid_times(self, init_time: datetime) -> list[datetime]:
        """Return the valid times of a forecast."""
        return [init_time + (i + 1) * self.step for i in range(self.horizon)]


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """Return spans of time in order, those that overlap or touch merged."""
    result: list[Span] = []
    for first, last in sorted(spans):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return result


def cron_trigger(schedule: Schedule) -> CronTrigger:
    """Return the trigger of wakeups; raise `InputError` for a wrong cron expression or time zone."""
    try:
        zone: tzinfo = ZoneInfo(schedule.time_zone)
    except (ZoneInfoNotFoundError, ValueError):
        raise InputError(
            f"params.yaml: live.schedule.time_zone is '{schedule.time_zone}', expected one such as UTC or Europe/Oslo"
        ) from None
    try:
        trigger = CronTrigger.from_crontab(schedule.cron, zone)
    except ValueError as error:
        raise InputError(
            f"params.yaml: live.schedule.cron is '{schedule.cron}': {error}; expected 'minute hour day month weekday' "
            "such as '*/5 * * * *'"
        ) from None
    if not _comes(trigger):
        raise InputError(
            f"params.yaml: live.schedule.cron is '{schedule.cron}', a day that no year has; expected one such as "
            "'0 6 1 * *'"
        )
    trigger.jitter = schedule.jitter_seconds or None
    return trigger


def _comes(trigger: CronTrigger) -> bool:
    """Return whether some day of a leap year is in the trigger's months and days of the month."""
    fields = [field for field in trigger.fields if field.name in ("month", "day")]
    days = (LEAP_DAYS_FROM + timedelta(days=day) for day in range(366))
    return any(all(field.get_next_value(day) == field.get_value(day) for field in fields) for day in days)
