"""Frames brought from a source's grid to the target grid: crop, coarsening and checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import SourceOptions
from fieldcast.pipeline.datasets.schema import X, Y, field_names
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


def read_frames(segment: Segment, frames: np.ndarray, target: Target) -> dict[str, np.ndarray]:
    """Return frames of a segment on the target grid, by variable float32 (t, y, x), NaN where missing.

    `frames` are positions in the segment's times. Raise `InputError` where grid or units are not the target's.
    """
    return on_target(segment, segment.read(frames, target.rows, target.columns), target)


def on_target(segment: Segment, read: xr.Dataset, target: Target) -> dict[str, np.ndarray]:
    """Return frames that were `read` of a segment, as `read_frames` does."""
    fields = {}
    for name in field_names(target.grid):
        units, expected = read[name].attrs.get("units"), target.grid[name].attrs["units"]
        if units != expected:
            raise InputError(f"{segment.name}: '{name}' has units '{units}', expected '{expected}'")
        fields[name] = block_mean(read[name].values, target.coarsen)
        shape = (read[name].shape[0], target.grid.sizes[Y], target.grid.sizes[X])
        if fields[name].shape != shape:
            raise InputError(f"{segment.name}: '{name}' has the shape {fields[name].shape}, expected {shape}")
    return fields
