"""Accumulations, which become rates over their own period and stand at its end."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.valid_time import FrameTimes

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


@dataclass(frozen=True)
class Sums:
    """Variables of a file that are sums over time, and the seconds `(frame,)` that each of their frames sums."""

    names: Sequence[str]
    seconds: np.ndarray


NO_SUMS = Sums((), np.empty(0))


def sums_of(path: str, raw: xr.Dataset, names: Sequence[str], frames: FrameTimes) -> tuple[Sums, FrameTimes]:
    """Return the variables among `names` whose cell methods are sums over time, and the frames at the ends of these.

    Raise `InputError` for a sum whose period the file does not tell, and beside variables of other times.
    """
    sums = [name for name in names if SUM.search(str(raw[name].attrs.get("cell_methods", "")))]
    if not sums:
        return NO_SUMS, frames
    if raw[sums[0]].attrs.get("units") not in RATES:
        raise InputError(
            f"{path}: '{sums[0]}' is a sum over time in {raw[sums[0]].attrs.get('units')}, expected one of "
            f"{', '.join(RATES)}: give the units by source.units"
        )
    start, end = _bounds(path, raw, sums[0], frames)
    if len(sums) < len(names) and not np.array_equal(end, frames.times):
        other = next(name for name in names if name not in sums)
        raise InputError(
            f"{path}: '{sums[0]}' is a sum over a period that ends at {end[0].astype('datetime64[s]')}, but '{other}' "
            f"stands at {frames.times[0].astype('datetime64[s]')}: keep them in files of their own"
        )
    return Sums(sums, (end - start) / np.timedelta64(1, "s")), FrameTimes(end, frames.places)


def _bounds(path: str, raw: xr.Dataset, name: str, frames: FrameTimes) -> tuple[np.ndarray, np.ndarray]:
    """Return start and end of the period of each frame."""
    for dim in frames.places:
        bounds = raw[dim].attrs.get("bounds") or raw[dim].encoding.get("bounds") if dim in raw.coords else None
        if bounds in raw.variables and np.issubdtype(raw[bounds].dtype, np.datetime64):
            ends = np.sort(raw[bounds].values[frames.places[dim]].astype("datetime64[ns]"), axis=1)
            if ends.shape[1] == 2 and (ends[:, 0] < ends[:, 1]).all() and len(frames.places) == 1:
                return ends[:, 0], ends[:, 1]
    raise InputError(
        f"{path}: '{name}' is a sum over time (cell_methods), and the file does not tell its period, expected bounds "
        "of time: add them, or give the units of what it is by source.units"
    )
