from itertools import pairwise

import numpy as np
import pytest

from pipeline.tiles import forecast_by_tiles, ramp, tile_starts


class Echo:
    """Forecasts the last frame plus nothing, and notes the tiles that it was asked for."""

    def __init__(self) -> None:
        self.origins: list[tuple[int, int]] = []

    def __call__(self, history: np.ndarray, init_times: np.ndarray, origin: tuple[int, int]) -> np.ndarray:
        self.origins.append(origin)
        return np.repeat(history[:, -1:], 2, axis=1)


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(100, 32, 8), (33, 32, 8), (64, 64, 8), (10, 32, 8), (128, 64, 0)]
)
def test_tiles_cover_and_overlap(size: int, tile: int, overlap: int) -> None:
    starts = tile_starts(size, tile, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(size - tile, 0)
    for first, second in pairwise(starts):
        assert first < second <= first + tile - overlap


def test_ramp_by_hand() -> None:
    np.testing.assert_allclose(ramp(8, 3), [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25])
    np.testing.assert_allclose(ramp(3, 0), 1)


def test_blending_leaves_agreeing_tiles_as_they_are() -> None:
    history = np.random.default_rng(1).normal(size=(2, 3, 1, 41, 53)).astype(np.float32)
    echo = Echo()
    result = forecast_by_tiles(echo, history, np.zeros(2), 16, 5)  # type: ignore[arg-type]
    np.testing.assert_allclose(result, np.repeat(history[:, -1:], 2, axis=1), rtol=1e-6)
    assert len(echo.origins) > 9


def test_seams_are_smooth() -> None:
    class Constant:
        def __call__(self, history: np.ndarray, init_times: np.ndarray, origin: tuple[int, int]) -> np.ndarray:
            return np.full((1, 1, 1, *history.shape[-2:]), float(origin[1] > 0), dtype=np.float32)

    row = forecast_by_tiles(Constant(), np.zeros((1, 1, 1, 8, 24)), np.zeros(1), 16, 8)[0, 0, 0, 0]  # type: ignore[arg-type]
    assert row[0] == 0
    assert row[-1] == 1
    assert (np.diff(row) >= -1e-6).all()
    assert np.diff(row).max() < 0.2  # tiles that disagree by 1 blend over the overlap


def test_missing_cells_stay_missing_and_do_not_spread() -> None:
    history = np.ones((1, 2, 1, 20, 20), dtype=np.float32)
    history[..., 7, 9] = np.nan
    result = forecast_by_tiles(Echo(), history, np.zeros(1), 12, 4)  # type: ignore[arg-type]
    assert np.isnan(result[..., 7, 9]).all()
    assert np.isnan(result).sum() == 2
