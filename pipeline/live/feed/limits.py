"""Limits of a feed: values that no instrument gives, and the bytes and seconds that one look may cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS
from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.missing import Limits

POSSIBLE: dict[str, Limits] = {  # by units, generously: records of the World Meteorological Organization
    RAIN_RATE_UNITS: (None, 3000.0),  # 38 mm in a minute, 2280 mm/h
    "K": (100.0, 400.0),  # -89 to 57 degrees at the ground, -143 in the mesosphere
    "degC": (-173.0, 127.0),
    "m s-1": (-500.0, 500.0),  # 113 at the ground, about 200 in jets
}
WIDTHS = 100  # of the range of the training data, by which a value of any other variable may lie beyond it
SLACK = 0.01  # of that range, by which packing and regridding may pass limits that the data declare

MOST_TIMES = 500_000  # in one file: forty years of hours

GivenLimits = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class FeedRules:
    """Limits of one look at a feed, and of the values in it by variable."""

    values: Mapping[str, Limits] = field(default_factory=dict)
    max_bytes: int = 256_000_000  # downloaded
    max_seconds: float = 90.0  # a third each for all requests, for files, and for the last file


def limits_of(channels: Sequence[Channel], given: GivenLimits) -> dict[str, Limits]:
    """Return the limits of each channel: those of `live.limits`, else the narrowest that units and training data give.

    Raise `InputError` for limits of a variable that the model does not have.
    """
    names = [channel.name for channel in channels]
    if unknown := sorted(given.keys() - set(names)):
        raise InputError(
            f"params.yaml: live.limits has '{unknown[0]}', which the model does not read: expected one of "
            f"{', '.join(names)}"
        )
    return {channel.name: given[channel.name] if channel.name in given else _limits(channel) for channel in channels}


def require_threshold(key: str, threshold: float, units: str) -> None:
    """Raise `InputError` for a threshold, at `key` of the parameters, that none or all values of these units reach."""
    low, high = POSSIBLE.get(units, (None, None))
    low = 0.0 if units == RAIN_RATE_UNITS else low
    if (low is not None and threshold <= low) or (high is not None and threshold > high):
        raise InputError(
            f"params.yaml: {key} has {threshold:g} {units}, expected more than {low:g} and at most {high:g}"
        )


def beyond(values: Mapping[str, np.ndarray], limits: Mapping[str, Limits]) -> str | None:
    """Return which value of a frame, (y, x) by variable, lies beyond its limits, in words; None where none does."""
    for name in sorted(values):
        low, high = (math.nan if limit is None else limit for limit in limits.get(name, (None, None)))
        valid = values[name][np.isfinite(values[name])]
        wrong = valid[(valid < low) | (valid > high)]
        if wrong.size:
            worst = wrong[np.abs(wrong.astype(np.float64)).argmax()]
            return (
                f"{name} is {worst:g} in one of {wrong.size} cells beyond what is possible, expected "
                f"{_words(low, high)}: correct the file, or set live.limits.{name}"
            )
    return None


def _limits(channel: Channel) -> Limits:
    width = channel.max - channel.min
    lows, highs = ([limit] for limit in POSSIBLE.get(channel.units, (None, None)))
    if width > 0:
        lows += [channel.min - WIDTHS * width, _minus(channel.valid_min, SLACK * width)]
        highs += [channel.max + WIDTHS * width, _minus(channel.valid_max, -SLACK * width)]
    return max((it for it in lows if it is not None), default=None), min(
        (it for it in highs if it is not None), default=None
    )


def _minus(limit: float | None, slack: float) -> float | None:
    return None if limit is None else limit - slack


def _words(low: float, high: float) -> str:
    if math.isnan(low):
        return f"{high:g} at most"
    return f"{low:g} at least" if math.isnan(high) else f"{low:g} to {high:g}"
