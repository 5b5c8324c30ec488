"""Data as models know them: channels with their statistics, units, grid and time axis.

A forecast of data with other units, another grid or another step is wrong without any error, hence the comparison of
signatures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import cos, isfinite, radians
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import xarray as xr
from pyproj.exceptions import CRSError

from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.finite import require_finite
from fieldcast.pipeline.datasets.grid import KM_PER_UNIT, crs_wkt, unit_of
from fieldcast.pipeline.datasets.schema import LATITUDE, LONGITUDE, TIME, X, Y, step_of
from fieldcast.pipeline.datasets.times import minutes_of, to_seconds
from fieldcast.pipeline.errors import InputError

DIGITS = 6  # of coordinates
JITTER = 1e-3  # of a cell: coordinates closer than that are the same
PLACE_DIGITS = 4  # of latitudes and longitudes of cells
DEGREES_OFF = 1e-3  # closer than that they are the same
STATISTICS = "statistics.json"
Places = tuple[tuple[float, float], ...]  # latitude and longitude in degrees


@dataclass(frozen=True)
class Channel:
    """One variable: its transform for a network and its statistics over the training period."""

    name: str
    units: str
    transform: str = "identity"
    floor: float = 1.0  # of the transform, in the variable's units
    valid_min: float | None = None
    valid_max: float | None = None
    mean: float = 0.0  # of the transformed values; 0 where anomalies are forecast
    scale: float = 1.0  # their standard deviation, or that of their anomalies
    min: float = 0.0  # lowest and highest value, in the variable's units
    max: float = 0.0
    valid_values: int = 0


@dataclass(frozen=True)
class Axis:
    """A coordinate axis of a regular grid: its cells, the first and the last centre."""

    cells: int
    first: float
    last: float
    units: str

    @property
    def spacing(self) -> float:
        """Return the distance of neighbouring centres, positive, in the axis' units; 0 of a single one."""
        return abs(self.last - self.first) / max(self.cells - 1, 1)


@dataclass(frozen=True)
class DataSignature:
    """Units, grid and time axis of observations, or of a grid without frames."""

    units: dict[str, str]  # by variable
    y: Axis
    x: Axis
    crs: str | None  # WKT
    step_minutes: int | float
    phase_seconds: int  # of frames after whole steps since 1970
    located: Places | None = None  # where the axes do not tell: latitude and longitude of some cells

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Return the number of rows and columns."""
        return self.y.cells, self.x.cells

    @property
    def cell_km(self) -> float:
        """Return the height of a cell in km; 1 where the grid's units are no lengths and no degrees."""
        return KM_PER_UNIT.get(unit_of(self.y.units), 0.0) * self.y.spacing or 1.0

    @property
    def cell_ratio(self) -> float:
        """Return the longer over the shorter side of a cell, in degrees at the mean latitude; 1 of a row or column."""
        sides = [self.y.spacing, self.x.spacing]
        if unit_of(self.y.units) == "degree":
            sides[1] *= cos(radians((self.y.first + self.y.last) / 2))
        elif unit_of(self.y.units) != unit_of(self.x.units):
            sides = [s * KM_PER_UNIT.get(unit_of(a.units), 1.0) for s, a in zip(sides, (self.y, self.x), strict=True)]
        return max(sides) / min(sides) if min(sides) > 0 else 1.0

    @property
    def digest(self) -> str:
        """Return the SHA-256 as 64 hex digits; coordinates that differ in rounding have another."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """Return the signature as JSON can hold it; without places where the axes tell them."""
        return {key: value for key, value in asdict(self).items() if key != "located" or value is not None}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DataSignature:
        """Return the signature that `as_dict` gave; raise `TypeError` where a key is unknown or missing."""
        axes = {name: Axis(**content[name]) for name in (Y, X) if name in content}
        values = {**content, **axes}
        if values.get("located") is not None:
            values["located"] = tuple((latitude, longitude) for latitude, longitude in values["located"])
        return cls(**values)


@dataclass(frozen=True)
class Statistics:
    """All that a model must know of the prepared data; channels that are forecast come first."""

    channels: tuple[Channel, ...]
    targets: int  # how many of the channels are forecast
    anomalies: bool  # forecasts are departures from the climatology
    signature: DataSignature

    def write(self, folder: Path) -> None:
        """Write `statistics.json` into `folder`; raise `InputError` for a number that is none."""
        for channel in self.channels:
            for key, value in asdict(channel).items():
                if isinstance(value, float):
                    require_finite(STATISTICS, f"{key} of {channel.name}", value)
        (folder / STATISTICS).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Statistics:
        """Return the content of `statistics.json` in `folder`; raise `InputError` where another version wrote it.

        Raise `DamagedError` where its bytes have changed.
        """
        content = json.loads(manifest.read_file(folder / STATISTICS))
        try:
            channels = tuple(Channel(**channel) for channel in content["channels"])
            signature = DataSignature.from_dict(content["signature"])
            return cls(channels, int(content["targets"]), bool(content["anomalies"]), signature)
        except (KeyError, TypeError) as error:
            raise InputError(f"{folder / STATISTICS}: {error}; run the prepare stage again") from None


def signature_of(grid: xr.Dataset, names: Sequence[str], step: np.timedelta64, first: np.datetime64) -> DataSignature:
    """Return the signature of observations or of a grid without frames.

    `first` is any time of the axis, `step` the axis' own. Of `names` those that `grid` lacks are left out, which
    `compare_signatures` then reports.
    """
    return DataSignature(
        units={name: grid[name].attrs["units"] for name in names if name in grid},
        y=_axis(grid[Y]),
        x=_axis(grid[X]),
        crs=crs_wkt(grid),
        step_minutes=minutes_of(step),
        phase_seconds=int(to_seconds(first) % int(step / np.timedelta64(1, "s"))),
        located=_located(grid),
    )


def compare_signatures(expected: DataSignature, found: DataSignature) -> str | None:
    """Return the first difference in words, None where `found` has all that is `expected`.

    Variables that only `found` has do not count; neither do coordinates that are off by less than 1e-3 of a cell, nor
    different texts of the same CRS.
    """
    for name, units in expected.units.items():
        if name not in found.units:
            return f"there is no {name} among {', '.join(found.units) or 'the variables'}, expected it in {units!r}"
        if found.units[name] != units:
            return f"units of {name} are {found.units[name]!r}, expected {units!r}"
    for name, wanted, axis in ((Y, expected.y, found.y), (X, expected.x, found.x)):
        if difference := _compare_axes(name, wanted, axis):
            return difference
    if difference := _compare_crs(expected.crs, found.crs):
        return difference
    if expected.located is not None and (difference := _compare_places(expected.located, found.located)):
        return difference
    if found.step_minutes != expected.step_minutes:
        return f"the step is {found.step_minutes:g} minutes, expected {expected.step_minutes:g}"
    if found.phase_seconds != expected.phase_seconds:
        here, there = found.phase_seconds, expected.phase_seconds
        return f"frames are {here} s after whole steps of {expected.step_minutes:g} minutes, expected {there} s"
    return None


def check_signature(path: Path, observed: xr.Dataset, expected: DataSignature, model: str) -> None:
    """Raise `InputError` where the observations at `path` lack anything of the signature that `model` learned from."""
    found = signature_of(observed, list(expected.units), step_of(observed), observed[TIME].values[0])
    if difference := compare_signatures(expected, found):
        raise InputError(f"{path}: {difference}, as {model} was trained; take another checkpoint")


def _axis(centres: xr.DataArray) -> Axis:
    first, last = (round(float(centres.values[end]), DIGITS) + 0.0 for end in (0, -1))  # + 0.0: no negative zero
    return Axis(centres.size, first, last, str(centres.attrs.get("units", "1")))


def _compare_axes(name: str, expected: Axis, found: Axis) -> str | None:
    if found.units != expected.units:
        return f"units of {name} are {found.units!r}, expected {expected.units!r}"
    if found.cells != expected.cells:
        return f"{name} has {found.cells} cells, expected {expected.cells}"
    tolerance = JITTER * expected.spacing + 2 * 10**-DIGITS  # both sides are rounded
    for verb, wanted, end in (("starts", expected.first, found.first), ("ends", expected.last, found.last)):
        if abs(end - wanted) > tolerance:
            return f"{name} {verb} at {end:.10g}, expected {wanted:.10g} {expected.units}"
    return None


def _located(grid: xr.Dataset) -> Places | None:
    """Return latitude and longitude of the cells at the corners and in the middle, None where they are no fields."""
    if not {LATITUDE, LONGITUDE} <= set(grid.coords):
        return None
    rows, columns = grid.sizes[Y], grid.sizes[X]
    cells = [(0, 0), (0, columns - 1), (rows // 2, columns // 2), (rows - 1, 0), (rows - 1, columns - 1)]
    places = [(float(grid[LATITUDE].values[cell]), float(grid[LONGITUDE].values[cell])) for cell in cells]
    return tuple((round(y, PLACE_DIGITS), round(x, PLACE_DIGITS)) for y, x in places if isfinite(y) and isfinite(x))


def _compare_places(expected: Places, found: Places | None) -> str | None:
    if found is None or len(found) != len(expected):
        count = len(found or ())
        return f"of five cells {count} have latitudes and longitudes of their own, expected {len(expected)}"
    for (latitude, longitude), (wanted_y, wanted_x) in zip(found, expected, strict=True):
        turned = (longitude - wanted_x + 180) % 360 - 180  # 360 degrees east are none
        if max(abs(latitude - wanted_y), abs(turned)) > DEGREES_OFF:
            return f"a cell lies at {latitude:g} N, {longitude:g} E, expected {wanted_y:g} N, {wanted_x:g} E"
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
