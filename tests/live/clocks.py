"""Clocks that tests set."""

from datetime import datetime, timedelta

from fieldcast.pipeline.live.clock import SystemClock


class SimulatedClock:
    """A clock that moves only when a test sleeps on it or sets it."""

    def __init__(self, start: datetime) -> None:
        self._now, self._seconds = start, 0.0

    def now(self) -> datetime:
        """Return the simulated time."""
        return self._now

    def monotonic(self) -> float:
        """Return the simulated seconds that have passed; setting the wall clock does not change them."""
        return self._seconds

    def sleep(self, seconds: float) -> None:
        """Let the time pass at once."""
        self._now += timedelta(seconds=seconds)
        self._seconds += seconds

    def set(self, now: datetime) -> None:
        """Set the wall clock, forwards or back."""
        self._now = now


class FixedClock(SystemClock):
    """A clock that shows a given time; seconds pass as they do."""

    def __init__(self, shown: datetime) -> None:
        self.shown = shown

    def now(self) -> datetime:
        """Return the time that is shown."""
        return self.shown
