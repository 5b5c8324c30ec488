"""Accumulations, which become rates over their own period and stand at its end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.valid_time import FrameTimes, as_datetime64, is_time

RATES = {  # units of an accumulation -> units of its rate, and the factor from units a second
    "m": ("mm h-1", 3.6e6),
    "mm": ("mm h-1", 3600.0),
    "kg m**-2": ("mm h-1", 3600.0),
    "kg m-2": ("mm h-1", 3600.0),
    "m of water equivalent": ("mm h-1", 3.6e6),
    "J m**-2": ("W m-2", 1.0),
    "J m-2": ("W m-2", 1.0),
}
KNOWN = {  # short names of ECMWF's accumulations
    *("tp", "cp", "lsp", "sf", "csf", "lsf", "e", "pev", "ro", "sro", "ssro", "smlt", "es"),
    *("ssr", "str", "ssrd", "strd", "ssrc", "strc", "tsr", "ttr", "tsrc", "ttrc", "tisr", "fdir", "sshf", "slhf"),
}
SUM = re.compile(r"\btime\s*:\s*sum\b")


def as_rate(attributes: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any], float]:
    """Return attributes of the rate of an accumulation over `seconds`, and the factor to it from the accumulation.

    `attributes` have `units` that are in `RATES`.
    """
    units, factor = RATES[attributes["units"]]
    kept = {key: value for key, value in attributes.items() if key != "standard_name"}
    if "cell_methods" in kept:
        kept["cell_methods"] = SUM.sub("time: mean", str(kept["cell_methods"]))
    return {**kept, "units": units}, factor / seconds


def unknown_period(path: str, name: str) -> InputError:
    """Return the error for a sum whose period the file does not tell."""
    return InputError(
        f"{path}: '{name}' is a sum over time, and the file does not tell its period: give it by "
        f"source.accumulated_minutes, such as {{{name}: 60}}, or the units of what it is by source.units"
    )


def require_rate(path: str, name: str, units: Any) -> None:
    """Raise `InputError` for a sum in units of which no rate is known."""
    if units not in RATES:
        raise InputError(
            f"{path}: '{name}' is a sum over time in {units}, expected one of {', '.join(RATES)}: give the units by "
            "source.units"
        )


Sums = Mapping[str, np.ndarray]  # variables of a file that are sums over time -> the seconds of each frame `(frame,)`


def sums_of(path: str, raw: xr.Dataset, options: GriddedOptions, frames: FrameTimes) -> tuple[Sums, FrameTimes]:
    """Return the wanted variables that are sums over time, and the frames, which stand at the ends of these.

    The period is given by the options, or by bounds of times in the file; a variable whose units are given is no sum.
    Raise `InputError` for a sum of neither, and for one beside variables of other times.
    """
    names = [name for name in options.variables if options.units_of(name) is None]
    given = {name: 60.0 * minutes for name, minutes in options.accumulated_minutes.items()}
    bounded = [name for name in names if name not in given and _is_sum(raw, name)]
    for name in (*given, *bounded):
        require_rate(path, name, raw[name].attrs.get("units"))
    seconds = np.empty(0)
    if bounded:
        ends, seconds = _bounds(path, raw, bounded[0], frames)
        if len(bounded) < len(options.variables) and not np.array_equal(ends, frames.times, equal_nan=True):
            other = next(name for name in options.variables if name not in bounded)
            raise InputError(
                f"{path}: '{bounded[0]}' is a sum over a period that ends at {ends[0].astype('datetime64[s]')}, but "
                f"'{other}' stands at {frames.times[0].astype('datetime64[s]')}: keep them in files of their own"
            )
        kept = ~np.isnat(ends)  # days that the standard calendar lacks
        seconds, frames = seconds[kept], FrameTimes(ends, frames.places)[kept]
    known = {name: np.full(frames.times.size, period) for name, period in given.items()}
    return known | dict.fromkeys(bounded, seconds), frames


def _is_sum(raw: xr.Dataset, name: str) -> bool:
    """Return whether a variable says that it is a sum over time, or is one of those that ECMWF's reanalyses have."""
    attributes = raw[name].attrs
    if SUM.search(str(attributes.get("cell_methods", ""))):
        return True
    of_ecmwf = str(attributes.get("GRIB_shortName", name)) in KNOWN and not attributes.get("cell_methods")
    return attributes.get("units") in RATES and (attributes.get("GRIB_stepType") == "accum" or of_ecmwf)


def _bounds(path: str, raw: xr.Dataset, name: str, frames: FrameTimes) -> tuple[np.ndarray, np.ndarray]:
    """Return the end of the period of each frame, and its seconds in the calendar of the file."""
    for dim in frames.places:
        bounds = raw[dim].attrs.get("bounds") or raw[dim].encoding.get("bounds") if dim in raw.coords else None
        if bounds not in raw.variables or not is_time(raw[bounds]) or len(frames.places) != 1:
            continue
        ends = raw[bounds].values[frames.places[dim]]
        if ends.ndim == 2 and ends.shape[1] == 2:
            low, high = ends.min(axis=1), ends.max(axis=1)
            seconds = np.array(high - low, "timedelta64[ns]") / np.timedelta64(1, "s")
            if (seconds > 0).all():
                return as_datetime64(path, str(bounds), high), seconds
    raise unknown_period(path, name)
