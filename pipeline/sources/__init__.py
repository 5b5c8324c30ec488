"""Archives of gridded observations: one module a kind, behind one protocol.

In: files, URLs or a simulation. Out: frames in physical units on the source's own grid, and their times.
May import: `errors`, `config`, `datasets`, `models`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import IngestOptions, SourceOptions
from fieldcast.pipeline.datasets.grid import spacing
from fieldcast.pipeline.datasets.schema import X, Y, field_names
from fieldcast.pipeline.sources.gridded import GriddedSource
from fieldcast.pipeline.sources.moving_mnist import MovingMnistSource
from fieldcast.pipeline.sources.radar.composites import RadarSource
from fieldcast.pipeline.sources.storms import StormsSource
from fieldcast.pipeline.sources.target import target_of
from fieldcast.pipeline.sources.time_axis import TimeAxis, fit_time_axis


class Segment(Protocol):
    """One file, one simulated event: a few frames that are read together. Pickled to reach other processes."""

    @property
    def name(self) -> str:
        """Return what an error message calls it: a path, or 'storm 12'."""

    @property
    def times(self) -> np.ndarray:
        """Return the times of its frames (datetime64[ns]), known without decoding a field."""

    def read(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        """Return the fields, float32 `(time, y, x)` in physical units, NaN where missing, in memory.

        `frames` are positions in `times`; `y` and `x` are cells of the source's grid.
        """


class Source(Protocol):
    """An archive."""

    def segments(self) -> Sequence[Segment]:
        """Return the segments in archive order; reads headers alone. Raise `InputError` for broken or mixed files."""

    def grid(self) -> xr.Dataset:
        """Return a template without frames: variables `(0, y, x)` with attributes, y, x and `spatial_ref` if known."""


KINDS: dict[str, Callable[[Any], Source]] = {
    "storms": StormsSource,
    "radar": RadarSource,
    "gridded": GriddedSource,
    "moving_mnist": MovingMnistSource,
}


def open_source(options: SourceOptions) -> Source:
    """Return the source that the options describe; nothing is read yet."""
    return KINDS[options.kind](options)


@dataclass(frozen=True)
class SourceInfo:
    """The store that an ingest of a source would write, known from its headers alone."""

    time_axis: TimeAxis
    variables: dict[str, str]  # name -> units
    grid_shape: tuple[int, int]  # y, x after crop and coarsening
    spacing: tuple[float, float]  # y, x in coordinate units, positive
    spacing_units: str
    duplicates: int  # frames whose time another frame has as well
    grid: xr.Dataset  # its coordinates, after crop and coarsening

    @property
    def step(self) -> np.timedelta64:
        """Return the step of the regular axis."""
        return np.timedelta64(self.time_axis.times[1] - self.time_axis.times[0])


def inspect_source(options: SourceOptions, rules: IngestOptions | None = None) -> SourceInfo:
    """Return a summary of the source, by headers alone; raise the `InputError` that an ingest would raise for them."""
    source = open_source(options)
    time_axis = time_axis_of(source, options, rules or IngestOptions())
    grid = target_of(source.grid(), options, f"the source ({options.kind})").grid
    return SourceInfo(
        time_axis=time_axis,
        variables={name: grid[name].attrs["units"] for name in field_names(grid)},
        grid_shape=(grid.sizes[Y], grid.sizes[X]),
        spacing=(spacing(grid[Y].values), spacing(grid[X].values)),
        spacing_units=str(grid[Y].attrs.get("units", "1")),
        duplicates=time_axis.duplicates,
        grid=grid[[Y, X]],
    )


def time_axis_of(source: Source, options: SourceOptions, rules: IngestOptions) -> TimeAxis:
    """Return the regular axis of the source and the frames that fill it; raise `InputError` where it has none."""
    segments = source.segments()
    names, times = [segment.name for segment in segments], [segment.times for segment in segments]
    return fit_time_axis(names, times, options.period, options.step_minutes, rules)
