"""When `fieldcast serve` wakes."""

from __future__ import annotations

from datetime import tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]

from fieldcast.pipeline.config import Schedule
from fieldcast.pipeline.errors import InputError


def trigger_of(schedule: Schedule) -> CronTrigger:
    """Return when to wake; raise `InputError` for a cron expression or a time zone that is none."""
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
    trigger.jitter = schedule.jitter_seconds or None
    return trigger
