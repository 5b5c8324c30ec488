"""What a model's data look like besides their values: units, grid and time axis, to compare other data with.

A forecast of data with other units, another grid or another step is wrong without any error, hence the comparison.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import xarray as xr
from pyproj.exceptions import CRSError

from fieldcast.pipeline.datasets.grid import KM_PER_UNIT, crs_wkt, unit_of
from fieldcast.pipeline.datasets.schema import TIME, X, Y, step_of
from fieldcast.pipeline.errors import InputError

DIGITS = 6  # of coordinates
JITTER = 1e-3  # of a cell: coordinates closer than that are the same


def contract_of(grid: xr.Dataset, names: Sequence[str], step: np.timedelta64, first: np.datetime64) -> dict[str, Any]:
    """Return units, axes, CRS, step and phase of observations or of a grid without frames, as JSON can hold them.

    `first` is any time of the axis, `step` the axis' own. Of `names` those that `grid` lacks are left out, which
    `compare_contracts` then reports.
    """
    second = np.timedelta64(1, "s")
    return {
        "units": {name: grid[name].attrs["units"] for name in names if name in grid},
        Y: _axis(grid[Y]),
        X: _axis(grid[X]),
        "crs": crs_wkt(grid),
        "step_minutes": int(step / np.timedelta64(1, "m")),
        "phase_seconds": int(first.astype("datetime64[s]").astype(np.int64) % int(step / second)),
    }


def cell_km(contract: dict[str, Any]) -> float:
    """Return the height of a cell in km; 1 where the grid's units are no lengths and no degrees."""
    axis = contract[Y]
    km = KM_PER_UNIT.get(unit_of(str(axis["units"])), 0.0)
    return km * abs(axis["last"] - axis["first"]) / max(axis["cells"] - 1, 1) or 1.0


def contract_digest(contract: dict[str, Any]) -> str:
    """Return the SHA-256 of a contract as 64 hex digits; coordinates that differ in rounding have another."""
    return hashlib.sha256(json.dumps(contract, sort_keys=True).encode()).hexdigest()


def compare_contracts(expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Return the first difference in words, None where `found` has all that is `expected`.

    Variables that only `found` has do not count; neither do coordinates that are off by less than 1e-3 of a cell, nor
    different texts of the same CRS.
    """
    for name, units in expected["units"].items():
        if name not in found["units"]:
            return f"there is no {name} among {', '.join(found['units']) or 'the variables'}, expected it in {units!r}"
        if found["units"][name] != units:
            return f"units of {name} are {found['units'][name]!r}, expected {units!r}"
    for axis in (Y, X):
        if difference := _compare_axes(axis, expected[axis], found[axis]):
            return difference
    if difference := _compare_crs(expected["crs"], found["crs"]):
        return difference
    if found["step_minutes"] != expected["step_minutes"]:
        return f"the step is {found['step_minutes']} minutes, expected {expected['step_minutes']}"
    if found["phase_seconds"] != expected["phase_seconds"]:
        here, there = found["phase_seconds"], expected["phase_seconds"]
        return f"frames are {here} s after whole steps of {expected['step_minutes']} minutes, expected {there} s"
    return None


def check_observations(path: Path, observed: xr.Dataset, expected: dict[str, Any], model: str) -> None:
    """Raise `InputError` where the observations at `path` lack anything of the contract that `model` learned from."""
    found = contract_of(observed, list(expected["units"]), step_of(observed), observed[TIME].values[0])
    if difference := compare_contracts(expected, found):
        raise InputError(f"{path}: {difference}, as {model} was trained; take another checkpoint")


def _axis(centres: xr.DataArray) -> dict[str, Any]:
    first, last = (round(float(centres.values[end]), DIGITS) + 0.0 for end in (0, -1))  # + 0.0: no negative zero
    return {"cells": centres.size, "first": first, "last": last, "units": centres.attrs.get("units", "1")}


def _compare_axes(axis: str, expected: dict[str, Any], found: dict[str, Any]) -> str | None:
    if found["units"] != expected["units"]:
        return f"units of {axis} are {found['units']!r}, expected {expected['units']!r}"
    if found["cells"] != expected["cells"]:
        return f"{axis} has {found['cells']} cells, expected {expected['cells']}"
    cell = abs(expected["last"] - expected["first"]) / max(expected["cells"] - 1, 1)
    tolerance = JITTER * cell + 2 * 10**-DIGITS  # both sides are rounded
    for end, verb in (("first", "starts"), ("last", "ends")):
        if abs(found[end] - expected[end]) > tolerance:
            return f"{axis} {verb} at {found[end]:.10g}, expected {expected[end]:.10g} {expected['units']}"
    return None


def _compare_crs(expected: str | None, found: str | None) -> str | None:
    if found == expected:
        return None
    here, there = _projection(found), _projection(expected)
    if here is not None and here == there:
        return None
    if here is None or there is None:
        return f"the CRS is {_name(here, found)}, expected {_name(there, expected)}"
    ours, theirs = here.to_cf(), there.to_cf()
    for key in sorted((ours.keys() | theirs.keys()) - {"crs_wkt"}):
        if ours.get(key) != theirs.get(key):
            return f"{key} of the CRS is {ours.get(key)!r}, expected {theirs.get(key)!r}"
    return f"the CRS is {_name(here, found)}, expected {_name(there, expected)}, another in its WKT text"


def _projection(wkt: str | None) -> pyproj.CRS | None:
    try:
        return None if wkt is None else pyproj.CRS.from_wkt(wkt)
    except CRSError:
        return None


def _name(crs: pyproj.CRS | None, wkt: str | None) -> str:
    if wkt is None:
        return "missing"
    return "not valid WKT" if crs is None else repr(crs.name)
