"""Survey of an archive: how it is read, its times and grid by headers, and the values of some frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fieldcast.pipeline.config.sources import Crop, GriddedOptions, IngestOptions, RadarOptions, SourceOptions
from fieldcast.pipeline.datasets.grid import spacing_km
from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import SourceInfo, inspect_source
from fieldcast.pipeline.sources.contents import Variable, radar_format, variables_of
from fieldcast.pipeline.sources.files import is_url
from fieldcast.pipeline.sources.samples import some_frames

MOST_CELLS = 128  # along an axis: what a first run trains on in minutes
MOST_VARIABLES = 4  # of one archive
MOST_FRAMES = 24  # that are read
CROP_BELOW = 0.7  # of the grid: a smaller part that holds all data is cropped to
LENIENT = IngestOptions(duplicates="first", out_of_order="sort")


@dataclass(frozen=True)
class Values:
    """Values of one variable in some frames, at the grid of the project."""

    low: float
    high: float
    spread: float  # standard deviation
    zeros: float  # share of cells at 0
    positive: np.ndarray  # values above 0, ascending, thinned
    ordered: np.ndarray  # all values, ascending, thinned


@dataclass(frozen=True)
class Survey:
    """All that a proposal is drawn from."""

    options: SourceOptions
    rules: IngestOptions
    info: SourceInfo
    values: Mapping[str, Values]
    notes: Mapping[str, str] = field(default_factory=dict)  # by key of `source`: why it is so

    @property
    def step_minutes(self) -> float:
        """Return the step of the time axis in minutes."""
        return float(self.info.step / np.timedelta64(1, "s")) / 60

    @property
    def cell_km(self) -> tuple[float, float] | None:
        """Return the sides (y, x) of a cell in km; None where the grid's units do not tell."""
        try:
            return spacing_km(self.info.grid)
        except InputError:
            return None

    @property
    def is_rain(self) -> bool:
        """Return whether the first variable is a rain rate with dry cells."""
        first = next(iter(self.info.variables))
        return self.info.variables[first] == RAIN_RATE_UNITS and 0 <= self.values[first].low < 0.1


def survey(source: str) -> Survey:
    """Return what the archive at `source`, a file, folder, glob or URL, holds; raise `InputError` for none."""
    path = source if is_url(source) else _stable(source)
    options, notes = _options(path)
    rules, info = _readable(options)
    if info.duplicates or rules != IngestOptions():
        notes["ingest"] = "some times are there twice, or not in order"
    options, info = _sized(options, rules, info, notes)
    frames = some_frames(options, rules, MOST_FRAMES)
    values = {name: _values(name, np.stack([frame[name] for frame in frames])) for name in info.variables}
    return Survey(options, rules, info, values, notes)


def _stable(source: str) -> str:
    """Return a path that means the same in the project's folder: relative below it, absolute elsewhere."""
    path = Path(source).expanduser()
    absolute = path if path.is_absolute() else Path.cwd() / path
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def _options(path: str) -> tuple[SourceOptions, dict[str, str]]:
    radar = radar_format(path)
    if isinstance(radar, RadarOptions):
        return radar, {}
    found = variables_of(path)
    same = [variable for variable in found if variable.dimensions == found[0].dimensions]
    chosen, rest = same[:MOST_VARIABLES], [v.name for v in found if v not in same[:MOST_VARIABLES]]
    content: dict[str, Any] = {"path": path, "variables": [variable.name for variable in chosen]}
    notes = {"variables": f"also there: {', '.join(rest[:12])}"} if rest else {}
    levels = _levels(chosen)
    if levels:
        content["select"] = {name: _plain(labels[0]) for name, labels in levels.items()}
        notes["select"] = "; ".join(f"{name} of {', '.join(map(str, labels[:8]))}" for name, labels in levels.items())
    if bare := [variable.name for variable in chosen if not variable.units]:
        content["units"] = dict.fromkeys(bare, "1")
        notes["units"] = "the file says none: correct it"
    try:
        return GriddedOptions.model_validate(content), notes
    except ValidationError as error:
        raise InputError(f"{path}: {error.errors()[0]['msg']}: rename its variables") from None


def _levels(variables: Sequence[Variable]) -> dict[str, Sequence[Any]]:
    return {name: labels for variable in variables for name, labels in variable.levels.items()}


def _plain(label: Any) -> float | str:
    return float(label) if isinstance(label, int | float | np.number) else str(label)


def _readable(options: SourceOptions) -> tuple[IngestOptions, SourceInfo]:
    """Return the rules of ingest by which the archive can be read, and what it is by its headers."""
    try:
        return IngestOptions(), inspect_source(options, IngestOptions())
    except InputError as error:
        try:
            return LENIENT, inspect_source(options, LENIENT)
        except InputError:
            raise error from None


def _sized(
    options: SourceOptions, rules: IngestOptions, info: SourceInfo, notes: dict[str, str]
) -> tuple[SourceOptions, SourceInfo]:
    """Return options that crop to the part with data and coarsen to a size that a first run can train on."""
    rows, columns = info.grid_shape
    seen = np.any([np.isfinite(frame).any(axis=0) for frame in _first_fields(options, rules)], axis=0)
    if not seen.any():
        raise InputError("the archive: no frame that was looked at has a value: choose another one")
    part, size = options, (rows, columns)
    (top, bottom), (left, right) = (_ends(seen.any(axis=other)) for other in (1, 0))
    if (bottom - top) * (right - left) < CROP_BELOW * rows * columns:
        part = options.model_copy(update={"crop": Crop(y=(top, bottom), x=(left, right))})
        size = bottom - top, right - left
        notes["crop"] = f"of {rows} x {columns} cells: outside are no data"
    coarsen = max(1, math.ceil(max(size) / MOST_CELLS))
    if coarsen > 1:
        part = part.model_copy(update={"coarsen": coarsen})
        notes["coarsen"] = (
            f"means over {coarsen} x {coarsen} cells, for a first run in minutes; 1: all of {size[0]} x {size[1]}"
        )
    return part, info if part is options else inspect_source(part, rules)


def _ends(there: np.ndarray) -> tuple[int, int]:
    places = np.flatnonzero(there)
    return int(places[0]), int(places[-1]) + 1


def _first_fields(options: SourceOptions, rules: IngestOptions) -> list[np.ndarray]:
    """Return the fields (variable, y, x) of some frames, all variables of a cell together."""
    return [np.stack(list(frame.values())) for frame in some_frames(options, rules, MOST_FRAMES // 4)]


def _values(name: str, frames: np.ndarray) -> Values:
    finite = np.sort(frames[np.isfinite(frames)].astype(np.float64))
    if finite.size == 0:
        raise InputError(f"{name}: no frame that was looked at has a value: choose another variable or archive")
    stride = max(1, finite.size // 100_000)
    positive = finite[finite > 0]
    return Values(
        low=float(finite[0]),
        high=float(finite[-1]),
        spread=float(finite.std()),
        zeros=float((finite == 0).mean()),
        positive=positive[:: max(1, positive.size // 100_000)],
        ordered=finite[::stride],
    )
