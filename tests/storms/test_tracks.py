import numpy as np
import pytest

from fieldcast.pipeline.storms.tracks import Track, follow, velocity
from fieldcast.pipeline.verification.storm_cells import StormCellOptions, StormCells, find

OPTIONS = StormCellOptions(at_least=5, area_km2=4, within_km=12, spacing=(1.0, 1.0))


def cells(*squares: tuple[int, int, int]) -> StormCells:
    """Return the storm cells of a field of 60 x 60 km with squares, each (first row, first column, side)."""
    field = np.zeros((60, 60))
    for y, x, side in squares:
        field[y : y + side, x : x + side] = 10
    return find(field, OPTIONS)


def test_two_storms_that_cross_keep_their_numbers() -> None:
    found = [cells((5 + 4 * k, 5, 4), (40 - 4 * k, 30, 6)) for k in range(6)]
    larger, smaller = follow(found, 12)
    assert larger.fields == smaller.fields == tuple(range(6))
    np.testing.assert_allclose(velocity(larger, found, 1 / 12), (-48, 0), atol=1e-9)
    np.testing.assert_allclose(velocity(smaller, found, 1 / 12), (48, 0), atol=1e-9)


def test_one_that_splits_goes_on_as_its_largest_part() -> None:
    before, after = cells((10, 10, 10)), cells((8, 8, 4), (15, 13, 7))
    small = int(np.argmin(after.areas))
    assert follow([before, after], 12) == [Track((0, 1), (0, 1 - small)), Track((1,), (small,))]
    nearer = cells((10, 10, 10)), cells((13, 13, 3), (17, 17, 8))  # the small part is nearer to the old centre
    first, second = follow(nearer, 12)
    assert (first.fields, second.fields) == ((0, 1), (1,))
    assert nearer[1].areas[first.numbers[1]] == 64


def test_of_several_that_merge_the_largest_goes_on() -> None:
    before = cells((10, 10, 8), (10, 22, 4))
    after = cells((10, 13, 12))  # its centre is nearer to that of the small one
    tracks = follow([before, after], 12)
    assert tracks == [Track((0, 1), (0, 0)), Track((0,), (1,))]


def test_none_jumps_farther_than_it_may() -> None:
    found = [cells((5, 5, 4)), cells((5, 30, 4)), cells((5, 33, 4))]
    assert follow(found, 12) == [Track((0,), (0,)), Track((1, 2), (0, 0))]
    assert velocity(Track((0,), (0,)), found, 1 / 12) is None
    assert follow([cells(), cells((5, 5, 4)), cells()], 12) == [Track((1,), (0,))]


@pytest.mark.parametrize("seed", range(10))
def test_speed_of_a_planted_storm_is_within_five_percent(seed: int) -> None:
    draws = np.random.default_rng(seed)
    wind = draws.uniform(20, 60, 2) * draws.choice([-1, 1], 2)  # km/h
    y, x = np.mgrid[:60, :60]
    frames = []
    for k in range(7):
        centre = 30 + wind * (k - 3) / 12
        frames.append(find(12 * np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / 50), OPTIONS))
    (track,) = follow(frames, 12)
    found = velocity(track, frames, 1 / 12)
    assert found is not None
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(wind), rel=0.05)
