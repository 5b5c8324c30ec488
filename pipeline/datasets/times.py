"""Conversions of times. All times are UTC."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np


def to_numpy(moment: datetime) -> np.datetime64:
    """Return a time as datetime64[ns]."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "ns")


def from_numpy(moment: np.datetime64) -> datetime:
    """Return a datetime64 as an aware time, in whole seconds."""
    return datetime.fromtimestamp(int(moment.astype("datetime64[s]").astype(np.int64)), UTC)
