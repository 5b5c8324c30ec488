"""The time, from a clock that tests can replace, and its spelling in names and records. All times are UTC."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

STAMP = "%Y%m%dT%H%M%SZ"
ALLOWED_BACK = timedelta(seconds=2)  # clocks are set back by so much in normal use


class Clock(Protocol):
    """The part of a clock that the live code uses."""

    def now(self) -> datetime:
        """Return the wall clock's time, aware, UTC."""

    def monotonic(self) -> float:
        """Return seconds that never go back."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Return the wall clock's time, aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds that never go back, with those for which the machine was suspended where it counts them."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def stamp(moment: datetime) -> str:
    """Return a time as file names have it: 20201031T060000Z."""
    return moment.astimezone(UTC).strftime(STAMP)


def iso(moment: datetime) -> str:
    """Return a time as records have it: 2020-10-31T06:00:00Z; texts sort as times do."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(text: str) -> datetime:
    """Return the time that `stamp`, `iso` or a user wrote, UTC if it has no zone; raise `ValueError` if it is none."""
    try:
        return datetime.strptime(text, STAMP).replace(tzinfo=UTC)
    except ValueError:
        moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
