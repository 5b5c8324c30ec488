from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import Crop, GriddedOptions, IngestOptions, RadarOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.schema import step_of
from fieldcast.pipeline.datasets.signature import signature_of
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.ingest import ingest
from fieldcast.pipeline.sources import open_source
from fieldcast.pipeline.sources.target import read_frames, target_of
from fieldcast.pipeline.sources.template import fields, grid_template
from tests.sources import archives


@dataclass(frozen=True)
class Ramps:
    """A part of 5 x 7 cells: cell (t, y, x) holds 100 t + 10 y + x."""

    units: str = "mm"
    width: int = 7
    name: str = "ramps.nc"

    @property
    def times(self) -> np.ndarray:
        return np.datetime64("2020-01-01", "ns") + np.arange(3) * np.timedelta64(5, "m")

    def read(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        t, rows, columns = np.meshgrid(frames, np.arange(5), np.arange(self.width), indexing="ij")
        return fields(self.times[frames], {"rain": (100 * t + 10 * rows + columns)[:, y, x]}, {"rain": self.units})


def grid() -> xr.Dataset:
    y, x = (xr.Variable(axis, np.arange(size) * 1.0, {"units": "km"}) for axis, size in (("y", 5), ("x", 7)))
    return grid_template(y, x, {"rain": {"units": "mm"}}, {})


def options(**more: object) -> GriddedOptions:
    return GriddedOptions.model_validate({"path": "ramps.nc", "variables": ["rain"], **more})


def test_frames_are_cropped_then_coarsened():
    target = target_of(grid(), options(crop=Crop(y=(1, 5), x=(2, 7)), coarsen=2), "here")
    frames = read_frames(Ramps(), np.array([0, 2]), target).values
    # rows 1 and 2, 3 and 4; columns 2 and 3, 4 and 5; the mean of 12, 13, 22, 23 is 17.5
    np.testing.assert_array_equal(frames["rain"], [[[17.5, 19.5], [37.5, 39.5]], [[217.5, 219.5], [237.5, 239.5]]])
    assert frames["rain"].dtype == np.float32
    np.testing.assert_array_equal(target.grid.x, [2.5, 4.5])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Ramps(units="m"), "ramps.nc: 'rain' has units 'm', expected 'mm'"),
        (Ramps(width=6), r"ramps.nc: 'rain' has the shape \(1, 5, 6\), expected \(1, 5, 7\)"),
    ],
)
def test_frames_of_another_kind_are_refused(part, message):
    with pytest.raises(InputError, match=message):
        read_frames(part, np.array([0]), target_of(grid(), options(), "here"))


def test_a_crop_outside_the_grid_is_refused():
    with pytest.raises(InputError, match="the grid of here has 7 cells along x"):
        target_of(grid(), options(crop=Crop(y=(0, 5), x=(0, 8))), "here")


def test_frames_and_signature_are_those_of_the_store(tmp_path: Path):
    """What is read frame by frame is what an ingest writes, so that a model may be given either."""
    (tmp_path / "raw").mkdir()
    counts = np.arange(4 * 6, dtype=np.uint16).reshape(4, 6)
    for minute in (5, 10, 15):
        archives.write_knmi(tmp_path / "raw" / f"{minute:02}.h5", f"2010-08-26 00:{minute:02}", counts * minute)
    radar = RadarOptions(path=str(tmp_path / "raw"), format="knmi", crop=Crop(y=(0, 4), x=(1, 6)), coarsen=2)
    ingest(radar, IngestOptions(shard_frames=2), tmp_path / "o.zarr")
    observations = store.open_observations(tmp_path / "o.zarr")
    source = open_source(radar)
    target = target_of(source.grid(), radar, "the feed")
    read = [read_frames(part, np.arange(part.times.size), target).values["rain_rate"] for part in source.segments()]
    assert np.concatenate(read).tobytes() == observations["rain_rate"].values.tobytes()
    step, first = step_of(observations), observations["time"].values[0]
    there = signature_of(observations, ["rain_rate"], step, first)
    assert signature_of(target.grid, ["rain_rate"], step, source.segments()[-1].times[0]) == there
    assert there.crs.startswith("PROJCRS")
    assert (there.grid_shape, there.step_minutes, there.phase_seconds) == ((2, 2), 5, 0)
