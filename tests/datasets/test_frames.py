"""Samples by position on the time axis, and times as seconds."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import FrameReader, sample_steps
from fieldcast.pipeline.datasets.times import from_numpy, from_seconds, to_numpy, to_seconds
from fieldcast.pipeline.errors import InputError
from tests.datasets.conftest import TIMES, write


@pytest.mark.parametrize(
    ("history", "horizon", "steps"), [(3, 2, [5, 6, 7, 8, 9]), (3, 0, [5, 6, 7]), (0, 2, [8, 9]), (1, 1, [7, 8])]
)
def test_a_sample_ends_its_history_at_the_init_time(history: int, horizon: int, steps: list[int]) -> None:
    assert np.arange(12)[sample_steps(7, history, horizon)].tolist() == steps


@pytest.mark.parametrize("cache", ["store", "ram"])
def test_samples_are_the_frames_around_their_init_times(tmp_path: Path, grid, rain, cache: str) -> None:
    write(tmp_path / "a.zarr", grid, rain)
    reader = FrameReader(tmp_path / "a.zarr", ["rain_rate"], cache)
    positions = reader.positions(TIMES[[1, 2]])
    assert positions.tolist() == [1, 2]
    samples = reader.samples(positions, 2, 1)
    np.testing.assert_array_equal(samples[:, :, 0], [rain[0:3], rain[1:4]])
    np.testing.assert_array_equal(reader.sample(1, 2, 1), samples[0])
    with pytest.raises(InputError, match="not on its time axis"):
        reader.positions(TIMES[:1] + np.timedelta64(1, "s"))
    assert store.open_observations(reader.path).sizes["time"] == TIMES.size


def test_times_and_seconds_are_inverse() -> None:
    times = np.array(["1969-12-31T23:59:58", "1970-01-01", "2024-02-29T12:00:01.9"], "datetime64[ns]")
    assert to_seconds(times).tolist() == [-2, 0, 1709208001]
    assert to_seconds(times).dtype == np.int64
    assert int(to_seconds(times[1])) == 0
    assert from_seconds(to_seconds(times)).dtype == "datetime64[ns]"
    np.testing.assert_array_equal(from_seconds(to_seconds(times)), times.astype("datetime64[s]"))
    moment = datetime(2024, 2, 29, 12, 0, 1, tzinfo=UTC)
    assert from_numpy(to_numpy(moment)) == moment
