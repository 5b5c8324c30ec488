"""Mean flow of planted winds, on grids that run either way."""

import math

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.evaluation.mean_flow import MeanFlow, flow_of, kilometres, mean_flow
from tests.models.references.showers import rain

STEP = np.timedelta64(5, "m")
METRES = {"units": "m"}


class Frames:
    """Frames in memory, read as those of a store."""

    def __init__(self, frames, down=True):
        size = frames.shape[-2:]
        y = np.arange(size[0]) * 2000.0
        coords = {
            "time": np.datetime64("2024-06-01T00:00", "ns") + np.arange(len(frames)) * STEP,
            "y": ("y", y[::-1] if down else y, METRES),
            "x": ("x", np.arange(size[1]) * 2000.0, METRES),
        }
        self.observations = xr.Dataset({"rain_rate": (("time", "y", "x"), frames)}, coords)

    def positions(self, times):
        return np.searchsorted(self.observations["time"].values, times)

    def sample(self, position, history):
        return self.observations["rain_rate"].values[position + 1 - history : position + 1, None]


@pytest.mark.parametrize(("down", "north"), [(True, -24), (False, 24)])
def test_a_planted_flow_is_found_in_km_an_hour(down, north):
    frames = Frames(rain(64, 64, 12, velocity=(2, 1))[0, :, 0], down)
    found = mean_flow(frames, frames.observations["time"].values[3:], 4)
    assert (found.east, found.north) == pytest.approx((48, north), rel=0.15)  # 2 and 1 cells of 2 km in 5 minutes
    assert found.steadiness > 0.95
    assert found.init_times == 9


def test_flows_that_cancel_are_unsteady():
    frames = Frames(
        np.concatenate([rain(64, 64, 4, velocity=(2, 0)), rain(64, 64, 4, velocity=(-2, 0))], axis=1)[0, :, 0]
    )
    found = mean_flow(frames, frames.observations["time"].values[[3, 7]], 4)
    assert found.steadiness < 0.3


def test_without_rain_there_is_no_flow():
    dry = Frames(np.zeros((8, 33, 49), np.float32))
    assert mean_flow(dry, dry.observations["time"].values[3:], 4) is None
    assert flow_of(np.full((4, 33, 49), np.nan, np.float32)) is None


def test_few_init_times_of_a_long_period():
    frames = Frames(rain(33, 49, 70)[0, :, 0])
    assert mean_flow(frames, frames.observations["time"].values[3:], 4).init_times <= 24


def test_cells_in_degrees_narrow_with_latitude():
    grid = xr.Dataset(coords={"y": ("y", [61.0, 60.0, 59.0], {"units": "degrees_north"}),
                              "x": ("x", [0.0, 1.0, 2.0], {"units": "degrees_east"})})  # fmt: skip
    x, y = kilometres(grid)
    assert y == pytest.approx(-111.2, rel=1e-3)
    assert x == pytest.approx(111.2 * math.cos(math.radians(60)), rel=1e-3)


@pytest.mark.parametrize(
    ("east", "north", "text"),
    [(0, 30, "30 km/h towards N (0°)"), (10, 0, "10 km/h towards E (90°)"), (-30, -30, "42 km/h towards SW (225°)")],
)
def test_speed_and_direction_in_words(east, north, text):
    assert MeanFlow(east, north, 0.9, 24).text() == f"{text}, steadiness 0.90 over 24 init times"
