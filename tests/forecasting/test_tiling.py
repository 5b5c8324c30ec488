from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fieldcast import models
from fieldcast.pipeline.forecasting.forecaster import Forecaster, forecast_fields, forecast_members
from fieldcast.pipeline.forecasting.tiling import Tiles, by_tiles, ramp, tile_starts
from tests.forecasting.test_checkpoint import description, trained

FIVE = np.datetime64("2024-06-01T22:40", "ns") + np.arange(5) * np.timedelta64(35, "m")
LEARNED: dict[str, dict[str, object]] = {
    "recurrent": {"hidden": [32], "patch": 2},
    "video_transformer": {"dim": 8, "heads": 2, "patch": 3},
    "simvp": {"channels": 4, "levels": 1, "hidden": 8, "blocks": 1},
    "unet": {"channels": 6, "levels": 1, "frame": "moving", "base": "lagrangian_regression"},
}
SHAPE = (32, 35)  # large enough for sums in another order: in one batch of five these networks round differently


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(100, 32, 8), (33, 32, 8), (64, 64, 8), (10, 32, 8), (128, 64, 0), (100, 50, 20)]
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
    fields, shapes = torch.randn(2, 3, 1, 41, 53), []

    def echo(tile: Tensor) -> Tensor:
        shapes.append(tuple(tile.shape[-2:]))
        return tile[:, -1:].repeat(1, 2, 1, 1, 1)

    torch.testing.assert_close(by_tiles(echo, fields, Tiles(16, 5)), fields[:, -1:].repeat(1, 2, 1, 1, 1))
    assert set(shapes) == {(16, 16)}
    assert len(shapes) > 9


def test_seams_are_smooth() -> None:
    columns = torch.arange(24.0).expand(8, 24)

    def right_of_the_start(tile: Tensor) -> Tensor:
        return (tile[:, :1] > 0).float().expand_as(tile)

    row = by_tiles(right_of_the_start, columns, Tiles(16, 8))[0].numpy()
    assert row[0] == 0
    assert row[-1] == 1
    assert (np.diff(row) >= -1e-6).all()
    assert np.diff(row).max() < 0.2  # tiles that disagree by 1 blend over the overlap


def test_missing_cells_stay_missing_and_do_not_spread(tmp_path: Path) -> None:
    history = five_histories()[:1]
    history[..., 7, 9] = np.nan
    result = forecast_fields(forecaster_of("recurrent", tmp_path), history, FIVE[:1], 14, 5)
    assert np.isnan(result[..., 7, 9]).all()
    assert np.isfinite(result[..., 7, 10:]).all()


def forecaster_of(model: str, folder: Path) -> Forecaster:
    weights = np.full((4, 1, 6), 0.2, np.float32)
    if model in LEARNED:
        forecaster = trained(model, folder / model, options=LEARNED[model])[0]
        assert forecaster.network is not None
        forecaster.network.guide = replace(forecaster.network.guide, arrays={"lagrangian_regression.weights": weights})
        return forecaster
    draws = np.random.default_rng(2)
    maps = draws.gamma(1.0, 1.0, size=(24, 1, *SHAPE)).astype(np.float32)
    arrays = {"climatology": maps, "damping": np.array([[0.9], [0.7], [0.5], [0.3]], np.float32), "weights": weights}
    if model == "linear":  # two components at three lags, hour of the day and a constant
        arrays["eofs"] = draws.normal(size=(2, 1, *SHAPE)).astype(np.float32)
        arrays["weights"] = np.ones((1, SHAPE[0]), np.float32)
        arrays["coefficients"] = draws.normal(size=(4, 9, 2)).astype(np.float32)
    return Forecaster(description(model), arrays)


def five_histories() -> np.ndarray:
    fields = np.random.default_rng(1).gamma(0.3, 3.0, size=(5, 3, 1, *SHAPE)).astype(np.float32)
    fields[:, :, :, :, 0] = np.nan
    fields[2, 2, :, 4:9, 4] = np.nan
    return fields


@pytest.mark.parametrize("tile", [None, 14])
@pytest.mark.parametrize("model", models.OPTIONS)
def test_a_forecast_is_the_same_in_any_block(model: str, tile: int | None, tmp_path: Path) -> None:
    forecaster, history = forecaster_of(model, tmp_path), five_histories()
    alone, pairs, together = (
        np.concatenate(
            [
                forecast_fields(forecaster, history[i : i + block], FIVE[i : i + block], tile, 5)
                for i in range(0, 5, block)
            ]
        )
        for block in (1, 2, 5)
    )
    assert alone.shape == (5, 4, 1, *SHAPE)
    assert alone.tobytes() == pairs.tobytes() == together.tobytes()
    in_other_memory = forecast_fields(forecaster, np.asfortranarray(history), FIVE, tile, 5)
    assert in_other_memory.tobytes() == alone.tobytes()


def test_tiles_are_for_networks_whose_training_crop_is_smaller(tmp_path: Path) -> None:
    history = five_histories()[:1]
    by_option = forecast_fields(forecaster_of("recurrent", tmp_path), history, FIVE[:1], 14, 5)
    by_crop, _ = trained("recurrent", tmp_path / "crop", options=LEARNED["recurrent"], crop_cells=14)
    np.testing.assert_array_equal(forecast_fields(by_crop, history, FIVE[:1], None, 5), by_option)
    whole = by_crop(history, FIVE[:1])
    np.testing.assert_array_equal(forecast_fields(by_crop, history, FIVE[:1], 35, 5), whole)
    assert not np.array_equal(whole, by_option, equal_nan=True)


def test_members_are_the_same_fields_in_tiles_and_whole(tmp_path: Path) -> None:
    options = {"hidden": [6], "kernel": 1, "patch": 1, "output": "ensemble", "members": 3}  # sees one cell alone
    forecaster, _ = trained("recurrent", tmp_path / "c", options=options)
    history = five_histories()[:2]
    tiled, whole = (forecast_members(forecaster, history, FIVE[:2], tile, 5) for tile in (14, None))
    assert tiled.shape == (2, 3, 4, 1, *SHAPE)
    np.testing.assert_allclose(tiled, whole, rtol=1e-4, atol=1e-5)
    assert (
        np.nanmin(np.abs(np.diff(whole, axis=1)).max(axis=(2, 3, 4, 5), where=np.isfinite(whole[:, :-1]), initial=0))
        > 0.01
    )
    mean = forecast_fields(forecaster, history, FIVE[:2], 14, 5)
    np.testing.assert_array_equal(mean, tiled.mean(axis=1))
