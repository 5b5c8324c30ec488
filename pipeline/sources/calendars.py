"""Times in calendars of climate models: years of 365, 366 or 360 days, as dates that everybody has.

A date keeps its year, month and day; in a calendar without leap days 29 February is a frame that is missing.
"""

from __future__ import annotations

import re

import numpy as np
import xarray as xr

from fieldcast.pipeline.errors import InputError

MONTH_DAYS = {
    "noleap": (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31),
    "all_leap": (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31),
    "360_day": (30,) * 12,
}
MONTH_DAYS |= {"365_day": MONTH_DAYS["noleap"], "366_day": MONTH_DAYS["all_leap"]}
UNIT_SECONDS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}
UNITS = re.compile(
    r"\s*(second|minute|hour|day)s?\s+since\s+(\d{1,4})-(\d{1,2})-(\d{1,2})(?:[T ](\d{1,2}):(\d{1,2}).*)?$"
)


def decoded_times(path: str, raw: xr.Dataset) -> xr.Dataset:
    """Return a dataset opened with undecoded times, those of every calendar decoded."""
    dataset = raw
    for name in raw.variables:
        attributes = raw[name].attrs
        calendar = str(attributes.get("calendar", "standard")).lower()
        if " since " not in str(attributes.get("units", "")) or calendar not in MONTH_DAYS:
            continue
        kept = {key: value for key, value in attributes.items() if key not in ("units", "calendar", "bounds")}
        moments = dates_of(path, raw[name].values, str(attributes["units"]), calendar)
        dataset = dataset.assign_coords({name: (raw[name].dims, moments, kept)})
    return xr.decode_cf(dataset, decode_timedelta=False)


def dates_of(path: str, values: np.ndarray, units: str, calendar: str) -> np.ndarray:
    """Return times in `units` of a model calendar as datetime64[ns]; raise `InputError` for a date that nobody has."""
    matched = UNITS.match(units)
    if matched is None:
        raise InputError(f"{path}: time has units '{units}', expected 'days since 2000-01-01' or the like: correct it")
    year, month, day = (int(part) for part in matched.groups()[1:4])
    hour, minute = (int(part or 0) for part in matched.groups()[4:6])
    lengths = np.array(MONTH_DAYS[calendar])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    first = ((year * starts[-1] + starts[month - 1] + day - 1) * 24 + hour) * 3600 + minute * 60
    seconds = first + np.round(np.asarray(values, np.float64) * UNIT_SECONDS[matched[1]]).astype(np.int64)
    days, rest = np.divmod(seconds, 86_400)
    years, of_year = np.divmod(days, starts[-1])
    months = np.searchsorted(starts, of_year, side="right")
    days_of_month = of_year - starts[months - 1] + 1
    moments = [
        f"{y:04d}-{m:02d}-{d:02d}" for y, m, d in zip(*map(np.ravel, (years, months, days_of_month)), strict=True)
    ]
    for moment in moments:
        _require_date(path, moment, calendar)
    dates = np.array(moments, "datetime64[D]").reshape(np.shape(values))
    return np.asarray(dates + rest.astype("timedelta64[s]"), "datetime64[ns]")


def _require_date(path: str, moment: str, calendar: str) -> None:
    try:
        np.datetime64(moment)
    except ValueError as error:
        raise InputError(
            f"{path}: time {moment} of calendar {calendar} is no date of the standard calendar: leave such days out"
        ) from error
