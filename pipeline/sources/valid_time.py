"""Valid times of the frames of a file, and where each of them is found along the file's own dimensions.

A field belongs to its valid time: the coordinate that CF calls `time`, or reference time plus forecast period. Times of
model calendars keep their year, month and day: in one without leap days 29 February is a frame that is missing, and
days that nobody has, such as 30 February, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.section import YEARS
from fieldcast.pipeline.errors import InputError

STEP_NAMES = ("step", "lead_time", "leadtime", "lead", "prediction_timedelta", "forecast_period", "forecast_hour")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "ns": 1e-9, "ms": 1e-3, "us": 1e-6}
SPELLINGS = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), "m"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
    **dict.fromkeys(("d", "day", "days"), "d"),
    **dict.fromkeys(("ns", "nanosecond", "nanoseconds"), "ns"),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), "ms"),
    **dict.fromkeys(("us", "microsecond", "microseconds"), "us"),
}


@dataclass(frozen=True)
class FrameTimes:
    """Frames of a file: their valid times (datetime64[ns]), and for each time dimension the position of each frame."""

    times: np.ndarray
    places: Mapping[str, np.ndarray]

    def __getitem__(self, chosen: np.ndarray) -> FrameTimes:
        return FrameTimes(self.times[chosen], {dim: place[chosen] for dim, place in self.places.items()})


def frame_times(path: str, file: xr.Dataset, field: xr.DataArray, named: str | None = None) -> FrameTimes:
    """Return the frames of `field`; `named` is the valid time's own name if the options give one.

    Raise `InputError` where the field has no CF time, or a time without a value.
    """
    valid = _valid_time(path, file, field, named)
    dims = [str(dim) for dim in valid.dims]
    flat = as_datetime64(path, str(valid.name), np.ravel(valid.values))
    places = dict(zip(dims, np.indices(valid.shape).reshape(valid.ndim, -1), strict=True)) if dims else {}
    order = np.argsort(flat, kind="stable") if len(dims) > 1 else np.arange(flat.size)  # runs overlap
    return FrameTimes(flat, places)[order[~np.isnat(flat[order])]]


def decoded_times(path: str, raw: xr.Dataset) -> xr.Dataset:
    """Return a dataset opened with undecoded times, those of every calendar decoded.

    Raise `InputError` for a coordinate whose times have no meaning; a variable of such is left out.
    """
    try:
        return xr.decode_cf(raw, decode_timedelta=False)
    except (ValueError, OverflowError, TypeError):
        broken = [str(name) for name in raw.variables if _is_undecodable(raw[[name]])]
    for name in broken:
        if name in raw.dims:
            units, calendar = (str(raw[name].attrs.get(key, "none")) for key in ("units", "calendar"))
            raise InputError(
                f"{path}: '{name}' has units '{units}' and calendar '{calendar}', expected a CF time such as 'hours "
                "since 2000-01-01' of a CF calendar: correct them"
            )
    return xr.decode_cf(raw.drop_vars(broken), decode_timedelta=False)


def _is_undecodable(one: xr.Dataset) -> bool:
    try:
        xr.decode_cf(one, decode_timedelta=False)
    except (ValueError, OverflowError, TypeError):
        return True
    return False


def is_time(array: xr.DataArray) -> bool:
    """Return whether an array holds moments, of any calendar."""
    if np.issubdtype(array.dtype, np.datetime64):
        return True
    return array.dtype == object and array.size > 0 and hasattr(np.ravel(array.values)[0], "calendar")


def _valid_time(path: str, file: xr.Dataset, field: xr.DataArray, named: str | None) -> xr.DataArray:
    moments = {str(name): file[name] for name in file.variables if is_time(file[name]) and _belongs(file[name], field)}
    if named:
        if named not in moments:
            raise InputError(
                f"{path}: source.dimensions.time is '{named}', found {', '.join(moments) or 'no time'}: correct it"
            )
        return moments[named]
    moments = {name: array for name, array in moments.items() if "bnds" not in name and "bounds" not in name}
    if not moments:
        raise InputError(f"{path}: '{field.name}' has no CF time (units such as 'hours since …'): add one to the file")
    references = {name for name, array in moments.items() if _is_reference(name, array)}
    valid = sorted(set(moments) - references, key=lambda name: _rank(name, moments[name], field))
    step = _step(file, field)
    if valid and not (step is not None and step.ndim and not set(step.dims) & set(moments[valid[0]].dims)):
        return moments[valid[0]]
    base = moments[sorted(references or valid, key=lambda name: _rank(name, moments[name], field))[0]]
    if step is None:
        return base
    seconds = SECONDS[_spelled(step)] * step.astype(float)
    nanoseconds = (seconds * 1e9).round().astype("timedelta64[ns]")
    times = base.copy(data=as_datetime64(path, str(base.name), np.ravel(base.values)).reshape(base.shape))
    return (times.drop_vars(list(times.coords)) + nanoseconds.drop_vars(list(nanoseconds.coords))).rename(base.name)


def _belongs(times: xr.DataArray, field: xr.DataArray) -> bool:
    return times.size == 1 or set(times.dims) <= set(field.dims)


def _is_reference(name: str, array: xr.DataArray) -> bool:
    if array.attrs.get("standard_name") == "forecast_reference_time":
        return True
    text = f"{name} {array.attrs.get('long_name', '')}".lower()
    return any(word in text for word in ("reference", "reftime", "initial time", "init_time", "analysis time"))


def _rank(name: str, array: xr.DataArray, field: xr.DataArray) -> tuple[bool, ...]:
    """Return what sorts the likeliest valid time first."""
    along = bool(set(array.dims) & set(field.dims))
    return (
        not (along or array.ndim == 0),
        not name.lower().startswith("valid"),
        array.attrs.get("standard_name") != "time",
        not along,
        name != "time",
    )


def _step(file: xr.Dataset, field: xr.DataArray) -> xr.DataArray | None:
    """Return the forecast period as a coordinate in units of time, None where there is none."""
    for name in file.variables:
        array = file[name]
        named = array.attrs.get("standard_name") == "forecast_period" or str(name).lower() in STEP_NAMES
        if named and _belongs(array, field) and array.dtype.kind in "iuf" and _spelled(array):
            return array if set(array.dims) <= set(field.dims) else array.squeeze()
    return None


def _spelled(step: xr.DataArray) -> str:
    return SPELLINGS.get(str(step.attrs.get("units", "")).lower(), "")


def as_datetime64(path: str, name: str, values: np.ndarray) -> np.ndarray:
    """Return times as datetime64[ns], dates that the standard calendar lacks as NaT.

    Raise `InputError` where a value is missing, or where no date is left.
    """
    is_date = [hasattr(moment, "isoformat") for moment in values] if values.dtype == object else ~np.isnat(values)
    if not np.all(is_date):
        first = int(np.argmin(is_date))
        raise InputError(f"{path}: value {first + 1} of {values.size} of '{name}' is missing: repair the file")
    if values.dtype != object:
        return values.astype("datetime64[ns]")
    if outside := [moment for moment in values if not YEARS[0] <= moment.year <= YEARS[1]]:
        raise InputError(
            f"{path}: '{name}' holds {outside[0]}, expected years {YEARS[0]} to {YEARS[1]}: take another file"
        )
    dates = np.array([_date(moment) for moment in values], "datetime64[ns]")
    if np.isnat(dates).all():
        raise InputError(
            f"{path}: '{name}' holds {values[0]} of calendar {values[0].calendar}, and no date of the standard "
            "calendar: take another file"
        )
    return dates


def _date(moment: Any) -> np.datetime64:
    """Return a date of any calendar; those of the Julian one are days that everybody has, by another name."""
    moment = moment.change_calendar("standard") if moment.calendar == "julian" else moment
    try:
        return np.datetime64(moment.isoformat(), "ns")
    except ValueError:
        return np.datetime64("NaT", "ns")
