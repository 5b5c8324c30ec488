"""Forecasts of whole fields, one init time at a time; larger ones than a network was trained on by blended tiles."""

from __future__ import annotations

import numpy as np

from fieldcast.pipeline.forecasting.forecaster import Forecaster, mean_of_members


def forecast_fields(
    forecaster: Forecaster, history: np.ndarray, init_times: np.ndarray, tile_cells: int | None, overlap_cells: int
) -> np.ndarray:
    """Return the mean over the members of `forecast_members`, (b, horizon, c, y, x)."""
    return mean_of_members(forecast_members(forecaster, history, init_times, tile_cells, overlap_cells))


def forecast_members(
    forecaster: Forecaster, history: np.ndarray, init_times: np.ndarray, tile_cells: int | None, overlap_cells: int
) -> np.ndarray:
    """Return forecasts (b, m, horizon, c, y, x) of whole fields (b, t, c, y, x), by tiles where a network needs them.

    Each init time is forecast on its own: networks round differently in batches of another size, and a forecast that is
    issued alone should be the hindcast's bit for bit. Tiles are of `tile_cells`, or of the training crop's size.
    """
    whole = max(history.shape[-2:])
    tile = whole if forecaster.network is None else tile_cells or forecaster.config.crop_cells or whole
    forecasts = []
    for i in range(len(init_times)):
        alone = np.ascontiguousarray(history[i : i + 1]), init_times[i : i + 1]
        if tile >= whole:
            forecasts.append(forecaster.members(*alone))
        else:
            forecasts.append(forecast_by_tiles(forecaster, *alone, tile, min(overlap_cells, tile - 1)))
    return np.concatenate(forecasts)


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """Return first cells of tiles that cover `size` cells, neighbours sharing at least `overlap` of them."""
    if tile >= size:
        return [0]
    count = -(-(size - overlap) // (tile - overlap))  # rounded up
    return [round(i * (size - tile) / (count - 1)) for i in range(count)]


def ramp(tile: int, overlap: int) -> np.ndarray:
    """Return the weight of a tile's cells along one axis: rising over `overlap` cells from either edge, 1 between."""
    distance = np.minimum(np.arange(tile), np.arange(tile)[::-1]) + 1
    return np.minimum(distance / (overlap + 1), 1.0).astype(np.float32)


def forecast_by_tiles(
    forecaster: Forecaster, history: np.ndarray, init_times: np.ndarray, tile: int, overlap: int
) -> np.ndarray:
    """Return forecasts (b, m, horizon, c, h, w) put together from tiles of `tile` cells, blended where they overlap.

    An ensemble's noise is the same in every tile, so that a member is one field. A cell that only some tiles can
    forecast takes those; one that none can is NaN.
    """
    h, w = history.shape[-2:]
    tile_y, tile_x = min(tile, h), min(tile, w)
    weight = ramp(tile_y, overlap)[:, None] * ramp(tile_x, overlap)[None, :]
    total: np.ndarray | None = None
    for y in tile_starts(h, tile_y, overlap):
        for x in tile_starts(w, tile_x, overlap):
            part = forecaster.members(history[..., y : y + tile_y, x : x + tile_x], init_times, (y, x))
            if total is None:
                total = np.zeros((*part.shape[:4], h, w), dtype=np.float32)
                weights = np.zeros_like(total)
            valid = np.isfinite(part)
            total[..., y : y + tile_y, x : x + tile_x] += np.where(valid, part, 0) * weight
            weights[..., y : y + tile_y, x : x + tile_x] += valid * weight
    assert total is not None
    blended: np.ndarray = np.divide(total, weights, out=np.full_like(total, np.nan), where=weights > 0)
    return blended
