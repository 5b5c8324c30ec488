"""Frames brought from a source's grid to the target grid: crop, coarsening and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import SourceOptions
from fieldcast.pipeline.datasets.schema import X, Y, field_names, refused_name
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.template import block_mean, cells, target_grid

if TYPE_CHECKING:
    from fieldcast.pipeline.sources import Segment


@dataclass(frozen=True)
class Target:
    """The grid that frames are brought to, and how to get there from the source's grid."""

    grid: xr.Dataset  # after crop and coarsening
    rows: slice
    columns: slice
    coarsen: int


def target_of(source_grid: xr.Dataset, options: SourceOptions, where: str) -> Target:
    """Return the target that the options ask for; raise `InputError` where the grid of `where` is too small for it."""
    grid = target_grid(source_grid, options.crop, options.coarsen, where)
    return Target(grid, *cells(source_grid, options.crop, where), options.coarsen)


class Frames(NamedTuple):
    """Frames by variable: values float32 `(t, y, x)`, NaN where missing, and how many `(t,)` were refused."""

    values: dict[str, np.ndarray]
    refused: dict[str, np.ndarray]  # of variables of which that is known


def read_frames(segment: Segment, frames: np.ndarray, target: Target) -> Frames:
    """Return frames of a segment on the target grid; `frames` are positions in the segment's times.

    Raise `InputError` where grid or units are not the target's.
    """
    read = segment.read(frames, target.rows, target.columns)
    values = {}
    for name in field_names(target.grid):
        units, expected = read[name].attrs.get("units"), target.grid[name].attrs["units"]
        if units != expected:
            raise InputError(f"{segment.name}: '{name}' has units '{units}', expected '{expected}'")
        values[name] = block_mean(read[name].values, target.coarsen)
        shape = (read[name].shape[0], target.grid.sizes[Y], target.grid.sizes[X])
        if values[name].shape != shape:
            raise InputError(f"{segment.name}: '{name}' has the shape {values[name].shape}, expected {shape}")
    return Frames(values, {name: read[refused_name(name)].values for name in values if refused_name(name) in read})
