"""Conversions of times. All times are UTC."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np


def to_seconds(times: np.ndarray | np.datetime64) -> np.ndarray:
    """Return datetime64 of any unit and shape as whole seconds since 1970, int64; a part of a second is cut off."""
    return np.asarray(times).astype("datetime64[s]").astype(np.int64)


def from_seconds(seconds: np.ndarray | int) -> np.ndarray:
    """Return seconds since 1970 as datetime64[ns]."""
    return np.asarray(seconds).astype("datetime64[s]").astype("datetime64[ns]")


JITTER_SHARE, JITTER_SECONDS = 0.05, 30


def tolerance(step_seconds: float) -> float:
    """Return from how many seconds beside an axis a time is off it: a twentieth of a step, at most 30 s."""
    return min(JITTER_SHARE * step_seconds, JITTER_SECONDS)


def minutes_of(duration: np.timedelta64) -> int | float:
    """Return a duration of whole seconds in minutes, an integer where they are whole."""
    seconds = round(float(duration / np.timedelta64(1, "s")))
    return seconds / 60 if seconds % 60 else seconds // 60


def from_minutes(minutes: float) -> np.timedelta64:
    """Return minutes as a duration of whole seconds: 1/3 of a minute is 20 s."""
    return np.timedelta64(round(60 * minutes), "s")


def to_numpy(moment: datetime) -> np.datetime64:
    """Return a time as datetime64[ns]."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "ns")


def from_numpy(moment: np.datetime64) -> datetime:
    """Return a datetime64 as an aware time, in whole seconds."""
    return datetime.fromtimestamp(int(to_seconds(moment)), UTC)
