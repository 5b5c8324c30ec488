"""Mean flow of rain in a period: with one flow in all of the training, a network may have learnt that flow alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.frames import FrameReader
from fieldcast.pipeline.datasets.grid import spacing_km
from fieldcast.pipeline.datasets.schema import X, Y, step_of

TIMES = 24  # init times of a period at most, evenly spread
COMPASS = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")


@dataclass(frozen=True)
class MeanFlow:
    """Mean of the flows at some init times, km/h towards the east and the north of the grid.

    `steadiness` is the length of the mean vector over the mean length: 1 where flows are alike, 0 where they cancel.
    """

    east: float
    north: float
    steadiness: float
    init_times: int

    def text(self) -> str:
        """Return speed and direction as people write them."""
        towards = math.degrees(math.atan2(self.east, self.north)) % 360
        point = COMPASS[round(towards / 22.5) % 16]
        return (
            f"{math.hypot(self.east, self.north):.0f} km/h towards {point} ({towards:.0f}°), "
            f"steadiness {self.steadiness:.2f} over {self.init_times} init times"
        )


def mean_flow(reader: FrameReader, init_times: np.ndarray, history: int) -> MeanFlow | None:
    """Return the mean flow where it rains of the first channel of `reader`, at some of `init_times`; None if nowhere.

    Raises `InputError` for a grid whose units are no lengths and no degrees.
    """
    observations = reader.observations
    chosen = init_times[:: -(-len(init_times) // TIMES)]
    flows = [flow_of(reader.sample(int(at), history)[:, 0]) for at in reader.positions(chosen)]
    moving = np.array([flow for flow in flows if flow is not None])
    if not len(moving):
        return None
    vectors = moving * kilometres(observations) / (step_of(observations) / np.timedelta64(1, "h"))
    east, north = vectors.mean(axis=0)
    speeds = np.hypot(*vectors.T)
    return MeanFlow(float(east), float(north), float(math.hypot(east, north) / speeds.mean()), len(moving))


def flow_of(frames: np.ndarray) -> np.ndarray | None:
    """Return the mean flow (x, y), in cells a step, of the last frame's wet cells in (t, h, w); None if none."""
    from fieldcast.models.layers.motion import motion  # torch takes seconds to import
    from fieldcast.models.layers.motion_options import MotionOptions

    options = MotionOptions()
    flow = motion(frames[None], options)[0].numpy()
    wet = np.nan_to_num(frames[-1]) >= options.dry_below
    if not (wet.any() and flow.any()):
        return None
    mean: np.ndarray = flow[:, wet].mean(axis=1)
    return mean


def kilometres(grid: xr.Dataset) -> np.ndarray:
    """Return a cell's extent along x and y in km, negative where the axis runs west or south."""
    y, x = spacing_km(grid)
    signs = [math.copysign(1, float(grid[axis][-1] - grid[axis][0])) for axis in (X, Y)]
    return np.array([x * signs[0], y * signs[1]])
