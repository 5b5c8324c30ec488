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


def to_numpy(moment: datetime) -> np.datetime64:
    """Return a time as datetime64[ns]."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "ns")


def from_numpy(moment: np.datetime64) -> datetime:
    """Return a datetime64 as an aware time, in whole seconds."""
    return datetime.fromtimestamp(int(to_seconds(moment)), UTC)
